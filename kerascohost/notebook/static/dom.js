// Elements described as values, and a function that makes a part of the page so. Elements that are
// there already are kept and changed, so that the focus and what is being typed stay.

const SVG = "http://www.w3.org/2000/svg";
const SVG_TAGS = new Set(["svg", "path", "line", "text", "circle", "rect", "g", "title"]);
const CHOICES = new Set(["value", "checked", "indeterminate"]);
const PROPERTIES = new Set([...CHOICES, "disabled", "hidden", "selected"]);
let keepsChoices = false;

// An element: `h("button", {onclick: f, disabled: true}, "Train")`. `key` tells it from others.
function h(tag, props, ...children) {
  const shown = children.flat(Infinity).filter((child) => child != null && child !== false);
  return { tag, props: props || {}, children: shown };
}

// Makes the children of `root` those described. While what the user chose is on its way to the
// kernel (`isOnItsWay`), elements keep the values that they have.
function patchAll(root, described, isOnItsWay) {
  keepsChoices = isOnItsWay;
  try {
    patch(root, described);
  } finally {
    keepsChoices = false;
  }
}

// Makes the children of any element those described.
function patch(parent, described) {
  const old = new Map();
  for (const node of parent.childNodes) if (node.kcKey !== undefined) old.set(node.kcKey, node);
  const nodes = described.map((one, i) => {
    const tag = typeof one === "object" ? one.tag : "#text";
    const key = tag + (one.props?.key ?? i);
    const known = old.get(key);
    old.delete(key);
    const node = known || made(tag, key);
    if (tag === "#text") {
      if (node.data !== String(one)) node.data = one;
    } else update(node, one);
    return node;
  });
  const wanted = new Set(nodes);
  for (const node of [...parent.childNodes]) if (!wanted.has(node)) node.remove();
  nodes.forEach((node, i) => {
    if (parent.childNodes[i] !== node) parent.insertBefore(node, parent.childNodes[i] || null);
  });
}

function made(tag, key) {
  const node =
    tag === "#text" ? document.createTextNode("")
    : SVG_TAGS.has(tag) ? document.createElementNS(SVG, tag)
    : document.createElement(tag);
  node.kcKey = key;
  node.kcProps = {};
  if (tag === "input") {
    node.addEventListener("input", () => (node.kcTyped = true));
    for (const event of ["change", "blur"]) {
      node.addEventListener(event, () => (node.kcTyped = false));
    }
  }
  return node;
}

function update(node, { props, children }) {
  patch(node, children); // first: a select takes only a value that is among its options
  for (const name of Object.keys(node.kcProps)) if (!(name in props)) set(node, name, undefined);
  for (const [name, value] of Object.entries(props)) set(node, name, value);
  node.kcProps = props;
}

function set(node, name, value) {
  if (name === "key") return;
  if (name.startsWith("on")) {
    node[name] = value || null;
  } else if (PROPERTIES.has(name)) {
    if (keepsChoices && CHOICES.has(name) && name in node.kcProps && node.tagName !== "PROGRESS") return;
    const next = value === undefined ? false : value;
    // A bar without the attribute moves, as if work went on: 0 is written, too.
    if (node.tagName === "PROGRESS" && !node.hasAttribute(name)) node.setAttribute(name, next);
    if (name === "value" && node.kcTyped) return; // never into what is being typed
    if (node[name] !== next && !(name === "value" && node[name] === String(next))) node[name] = next;
  } else if (node.kcProps[name] !== value) {
    if (value == null || value === false) node.removeAttribute(name);
    else node.setAttribute(name, value === true ? "" : value);
  }
}
