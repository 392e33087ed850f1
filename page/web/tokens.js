// A text as the tokens that it is made of: one button each, arrow keys move among them, Enter or a click chooses.
// value: {given, tokens: [{text, id, bytes, rank, p, bits, known}, ...]}. How likely a token was is told by colour, by the
// line under it, and in words.
const CLASSES = [
    [0.5, "sure", "half or more"],
    [0.1, "likely", "10% to 50%"],
    [0.01, "rare", "1% to 10%"],
    [0, "surprise", "below 1%"],
];
const box = element.querySelector(".tokens");
const classOf = (p) => CLASSES.find(([least]) => p >= least)[1];
element.querySelector(".legend").append(
    "How likely the model found it: ",
    ...CLASSES.map(([, name, words]) => make("span", { class: `token ${name}` }, words)),
);
const draw = () => {
    const parts = props.value?.given ? [make("span", { class: "given" }, props.value.given)] : [];
    (props.value?.tokens ?? []).forEach(({ text, id, bytes, rank, p, bits, known }, i) => {
        const unseen = known ? "" : ", nowhere in the training text";
        const label = `${quoted(text)} ${percent(p)}, ${surprise(bits)}, rank ${rank}, token ${id}, ${bytes} bytes${unseen}`;
        const shown = text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replace(/^ +$/, (s) => "␣".repeat(s.length));
        const attributes = { class: `token ${classOf(p)}${known ? "" : " unseen"}`, title: label, "aria-label": label, "data-i": i };
        parts.push(make("button", { type: "button", tabindex: i ? -1 : 0, "aria-pressed": false, ...attributes }, shown));
        if (text.endsWith("\n")) parts.push(make("br"));
    });
    box.replaceChildren(...parts);
};
const buttons = () => [...box.querySelectorAll("button")];
const reach = (button) => {
    for (const other of box.querySelectorAll('[tabindex="0"]')) other.tabIndex = -1;
    button.tabIndex = 0;
    button.focus();
};
box.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    for (const other of box.querySelectorAll('[aria-pressed="true"]')) other.setAttribute("aria-pressed", "false");
    button.setAttribute("aria-pressed", "true");
    reach(button);
    trigger("select", { index: Number(button.dataset.i) });
});
box.addEventListener("keydown", (event) => {
    if (event.repeat && event.key === "Enter") event.preventDefault(); // each press is a question to the model
    const all = buttons(), at = all.indexOf(document.activeElement);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1 }[event.key];
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    reach(all[Math.max(0, Math.min(to, all.length - 1))]);
});
watch("value", draw);
draw();
