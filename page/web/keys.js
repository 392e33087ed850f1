// Ctrl+Enter or Cmd+Enter generates, Esc stops; not while an input method composes a character.
document.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    const press = (id) => document.getElementById(id)?.click();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
        event.preventDefault();
        press("generate");
    }
    if (event.key === "Escape") press("stop");
});
