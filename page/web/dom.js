// What all scripts of the page share. A visitor's text only ever becomes text: it goes in through textContent, never
// through innerHTML or a template.
const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children); // strings become text nodes
    return node;
};
const percent = (p) => (p >= 0.0995 ? `${(100 * p).toFixed(0)}%` : p >= 0.0005 ? `${(100 * p).toFixed(1)}%` : "<0.1%");
const surprise = (bits) => `surprise of ${bits.toFixed(1)} bits`; // goes on where percent() ends
const quoted = (text) => `“${text.replaceAll("\n", "⏎").replaceAll("\t", "⇥")}”`;
