"""Make a checkpoint from text (imports gpt2, never gradio)."""
