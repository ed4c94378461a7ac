// Elements, figures as text, controls. Text only ever enters through text nodes.

const SVG = 'http://www.w3.org/2000/svg';

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (name === 'css') for (const [key, text] of Object.entries(value)) element.style.setProperty(key, text);
    else element.setAttribute(name, value === true ? '' : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

const html = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

const MISSING = '–';
const known = (value) => typeof value === 'number' && Number.isFinite(value);

const fixed = (digits) => (value) =>
  known(value) ? (Number(value.toFixed(digits)) || 0).toLocaleString('en-US', {minimumFractionDigits: digits, maximumFractionDigits: digits}) : MISSING;
const whole = fixed(0);
const counted = (count, noun) => `${whole(count)} ${noun}${count === 1 ? '' : 's'}`;
const share = (value) => (known(value) ? fixed(1)(100 * value) + ' %' : MISSING);
const short = (value) => {
  if (!known(value)) return MISSING;
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(2);
  return fixed(size >= 1000 ? 0 : size >= 100 ? 1 : size >= 10 ? 2 : 3)(value);
};
const bytes = (value) => {
  if (!known(value)) return MISSING;
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let place = 0;
  for (; value >= 1024 && place < units.length - 1; place += 1) value /= 1024;
  return fixed(place > 2 ? 1 : 0)(value) + ' ' + units[place];
};

let controls = 0;

// One choice among several: native radio buttons, so that Tab and the arrow keys work as everywhere.
function choice(label, options, chosen, onchange) {
  const name = 'choice-' + (controls += 1);
  const inputs = options.map(({value, text, disabled, title}) =>
    html('label', {title: title || null},
      html('input', {type: 'radio', name, value, checked: value === chosen, disabled: Boolean(disabled),
                     onchange: () => onchange(value)}),
      html('span', {}, text)));
  return html('fieldset', {class: 'choice'}, html('legend', {}, label), html('div', {class: 'options'}, inputs));
}

function select(label, options, onchange) {
  const list = html('select', {onchange: (event) => onchange(event.target.value)},
    options.map(({value, text}) => html('option', {value}, text)));
  return html('label', {class: 'select'}, html('span', {}, label), list);
}

// A table: head cells, rows of cells (the first is the row's header). A cell is text or {text, sub, css, run}.
function table(caption, heads, rows) {
  const cell = (content, place) => {
    const given = content !== null && typeof content === 'object' && !(content instanceof Node) ? content : {text: content};
    const inner = [given.run === undefined ? null : swatch(given.run), given.text,
                   given.sub ? html('small', {}, given.sub) : null];
    return place === 0 ? html('th', {scope: 'row'}, inner) : html('td', {css: given.css || {}}, inner);
  };
  return html('div', {class: 'scroll', tabindex: '0', role: 'region', 'aria-label': caption},
    html('table', {},
      html('caption', {}, caption),
      html('thead', {}, html('tr', {}, heads.map((head) => html('th', {scope: 'col'}, head)))),
      html('tbody', {}, rows.map((row) => html('tr', {}, row.map(cell))))));
}

const color = (run) => `var(--run-${run % 10})`;
const swatch = (run) => {
  const key = svg('svg', {class: 'swatch', viewBox: '-6 -6 12 12', 'aria-hidden': 'true'});
  key.append(mark(run, 0, 0, 4.4));
  return key;
};

// Runs are told apart by shape as well as by colour.
const SHAPES = [
  (r) => `M${-r},0a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0`,
  (r) => `M${-0.9 * r},${-0.9 * r}h${1.8 * r}v${1.8 * r}h${-1.8 * r}z`,
  (r) => `M0,${-1.2 * r}L${1.2 * r},${r}H${-1.2 * r}z`,
  (r) => `M0,${-1.3 * r}L${1.3 * r},0L0,${1.3 * r}L${-1.3 * r},0z`,
  (r) => `M0,${1.2 * r}L${1.2 * r},${-r}H${-1.2 * r}z`,
];
function mark(run, x, y, r) {
  return svg('path', {d: SHAPES[run % SHAPES.length](r), transform: `translate(${x},${y})`, css: {fill: color(run)}});
}

const legend = (runs) => html('div', {class: 'legend'}, runs.map((run, i) => html('span', {}, swatch(i), run.label)));

function section(id, title, intro, ...children) {
  return html('section', {id, 'aria-labelledby': id + '-title'},
    html('h2', {id: id + '-title'}, title), intro ? html('p', {class: 'intro'}, intro) : null, children);
}
