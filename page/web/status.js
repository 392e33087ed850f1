// Gradio tells a visitor's place in the queue in a corner that nobody reads aloud; here it becomes a sentence.
const block = element.closest(".block"), line = element.querySelector("p");
new MutationObserver(() => {
    const place = block.textContent.match(/queue: (\d+)\/(\d+)/);
    const said = place && `Others are writing: you are number ${place[1]} of ${place[2]} in the queue.`;
    if (said && line.textContent !== said) line.textContent = said;
}).observe(block, { childList: true, characterData: true, subtree: true });
