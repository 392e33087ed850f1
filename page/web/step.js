// One choice under the microscope: the likeliest tokens through every filter, and the random number that chose.
// value: {index, token: {text, p, rank, bits}, vocabulary, choices, steps: [{name, left}], rows: [{id, text, p: [], here}],
//         draw: {u, slice, text, same}}, or {} for nothing
const box = element.querySelector(".step");
const bar = (p, most) => {
    const cell = make("td", { class: p === 0 ? "gone" : "" });
    const line = make("span", { class: "bar" });
    line.style.width = `${(100 * p) / most}%`;
    cell.append(line, make("span", { class: "figure" }, p === 0 ? "out" : percent(p)));
    return cell;
};
const strip = ({ u, slice, text, same }) => {
    const part = make("div", { class: "draw" });
    const outcome = same ? "" : ": with these settings another token than the one that stands in the text";
    if (u === null) {
        part.append(make("p", {}, `No chance is involved: the likeliest is always taken, ${quoted(text)}${outcome}.`));
        return part;
    }
    const digits = Math.min(8, Math.max(3, 1 - Math.floor(Math.log10(slice[1] - slice[0])))); // the ends differ
    const [from, to, came] = [...slice, u].map((x) => x.toFixed(digits));
    const line = make("div", { class: "strip", "aria-hidden": "true" }, make("i"), make("b"));
    line.children[0].style.cssText = `left: ${100 * slice[0]}%; width: ${100 * (slice[1] - slice[0])}%`;
    line.children[1].style.left = `${100 * u}%`;
    const words = `The draw: a random number from 0 to 1 came out as ${came}. What is left shares that line by `
        + `its probability, and ${from} to ${to} belongs to ${quoted(text)}${outcome}.`;
    part.append(make("p", {}, words), line);
    return part;
};
const draw = () => {
    const { token, index, vocabulary, choices, steps, rows, draw: drawn } = props.value ?? {};
    if (!rows) return box.replaceChildren();
    const facts = `Token ${index + 1}: the model gave it ${percent(token.p)}, a ${surprise(token.bits)}, rank ${token.rank} of `
        + `${vocabulary.toLocaleString("en")}. The choice was as open as one among ${choices.toFixed(choices < 10 ? 1 : 0)} `
        + `equally likely tokens (entropy ${Math.log2(choices).toFixed(1)} bits).`;
    const head = make("tr", {}, make("th", { scope: "col" }, "Token"));
    for (const { name, left } of steps)
        head.append(make("th", { scope: "col" }, name, make("small", {}, `${left.toLocaleString("en")} left`)));
    head.append(make("th", { scope: "col" }, make("span", { class: "spoken" }, "Fork")));
    const most = Math.max(...rows.flatMap((row) => row.p)); // the longest bar, so that a flat choice can be seen too
    const body = make("tbody");
    for (const { id, text, p, here } of rows) {
        const name = make("th", { scope: "row" }, quoted(text));
        if (here) name.append(make("small", {}, " in the text"));
        const go = make("button", { type: "button", "data-id": id, "aria-label": `Go on from here with ${quoted(text)}` }, "go on");
        body.append(make("tr", { class: here ? "here" : "" }, name, ...p.map((x) => bar(x, most)), make("td", {}, go)));
    }
    const caption = make("caption", {}, "The likeliest, from left to right through each filter. “go on” writes another text from here, with the same seed.");
    const table = make("table", {}, caption, make("thead", {}, head), body);
    box.replaceChildren(
        make("h2", {}, quoted(token.text)),
        make("p", {}, facts),
        make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "The likeliest tokens" }, table),
        ...(drawn ? [strip(drawn)] : []),
    );
};
box.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-id]");
    if (button) trigger("select", { id: Number(button.dataset.id) });
});
watch("value", draw);
draw();
