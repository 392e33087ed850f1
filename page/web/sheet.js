// Texts side by side, each in parts of a kind: the prompt, the text, what is copied, where two texts part ways.
// value: {sheets: [{title, parts: [[kind, text], ...]}, ...]}
const TAGS = { prompt: "b", text: "span", copied: "u", apart: "mark" };
const box = element.querySelector(".sheet");
const grow = (node, text) => {
    // What is only longer than before keeps its text node, and with it what the reader has selected in it.
    const old = node.firstChild ?? node.appendChild(document.createTextNode(""));
    if (text.startsWith(old.data)) text.length > old.data.length && old.appendData(text.slice(old.data.length));
    else old.data = text;
};
const draw = () => {
    const sheets = props.value?.sheets ?? [];
    const atEnd = "follow" in box.dataset && box.scrollHeight - box.scrollTop - box.clientHeight < 40;
    while (box.children.length > sheets.length) box.lastChild.remove();
    sheets.forEach(({ title, parts }, i) => {
        const sheet = box.children[i] ?? box.appendChild(make("article", {}, make("h2"), make("p")));
        const [heading, text] = sheet.children;
        heading.hidden = !title;
        grow(heading, title);
        while (text.children.length > parts.length) text.lastChild.remove();
        parts.forEach(([kind, words], j) => {
            const tag = TAGS[kind];
            let part = text.children[j];
            if (part?.localName !== tag) {
                const fresh = make(tag);
                part ? part.replaceWith(fresh) : text.append(fresh);
                part = fresh;
            }
            grow(part, words);
        });
    });
    const mark = box.querySelector("mark");
    if (mark) box.scrollTop = mark.offsetTop - box.offsetTop - box.clientHeight / 2;
    else if (atEnd) box.scrollTop = box.scrollHeight;
    else if (!("follow" in box.dataset)) box.scrollTop = 0;
};
watch("value", draw);
draw();
