// A slider's reset. Gradio's own returns to the value that the slider had when it was first seen, which under "More" may
// be a preset's or a link's, and is no input: a preset would stay chosen, and the microscope would not follow.
document.addEventListener("click", (event) => {
    const block = event.target.closest(".reset-button")?.closest(".block");
    if (!block) return;
    event.stopImmediatePropagation();
    const usual = window.gradio_config.components.find(({ props }) => props.elem_id === block.id).props.value;
    const box = block.querySelector("input[type=number]");
    box.value = usual;
    box.dispatchEvent(new Event("input", { bubbles: true }));
}, true);
