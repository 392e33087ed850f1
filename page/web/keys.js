// Ctrl+Enter or Cmd+Enter presses the main button of the room that is open, Esc the one that stops; not while an input
// method composes a character.
document.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    const press = (which) => [...document.querySelectorAll(`#house button${which}`)].find((b) => b.offsetParent)?.click();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
        event.preventDefault();
        press(".primary");
    }
    if (event.key === "Escape") press('[id$="stop"]');
});
