// The token view: solutions of one problem, each token coloured by one quantity; both solutions in one arm, or one in all arms.

const QUANTITIES = [
  {value: 'weight', text: 'weight', perHead: true, middle: 1, about: 'the weight of this token’s loss'},
  {value: 'nll', text: 'nll', perHead: true, about: 'how surprised the head was, in nats'},
  {value: 'excess', text: 'excess', perHead: true, middle: 0, about: 'nll minus the reference’s nll'},
  {value: 'value', text: 'value', about: 'what the critic thinks of the solution after this token'},
  {value: 'advantage', text: 'advantage', middle: 0, about: 'how far this token raised the critic’s expectation'},
];

const figureOf = (variant, quantity, head, place) => {
  const rows = variant[quantity.value];
  if (!rows) return null;
  return quantity.perHead ? (rows[head - 1] || [])[place] : rows[place];
};
const verdict = (variant) => (variant.correct ? 'correct' : 'incorrect');

function tokens({runs}) {
  const arms = runs.map((run, i) => ({run, i, view: run.tokens})).filter(({view}) => view && view.problems.length);
  if (!arms.length) return null;
  const has = (arm, quantity) => arm.view.problems.some((problem) => problem.variants.some((variant) => variant[quantity.value]));
  const most = Math.max(...arms.map(({view}) => view.heads || 0));
  const usual = arms.find((arm) => arm.view.heads && arm.view.scheme !== 'uniform' && has(arm, QUANTITIES[0])) || arms[0];
  const state = {arm: usual.i, quantity: QUANTITIES.find((quantity) => has(usual, quantity)).value, head: 1, problem: usual.view.problems[0].problem, show: 'pair', read: {}};
  const panel = html('div', {class: 'controls'});
  const place = html('div', {class: 'solutions'});
  const about = html('p', {class: 'aside'});
  const problemOf = ({view}) => view.problems.find((one) => one.problem === state.problem);
  const chosenArm = () => arms.find(({i}) => i === state.arm);

  // The scale is that of all arms and heads on this problem, so that colours can be compared when switching.
  function scaleOf(quantity) {
    const all = arms.flatMap(({view}) => view.problems.filter((one) => one.problem === state.problem).flatMap((one) =>
      one.variants.flatMap((variant) => (variant[quantity.value] || []).flat()))).filter(known);
    const [low, high] = [Math.min(...all), Math.max(...all)];
    const middle = quantity.middle === undefined ? low : quantity.middle;
    const reach = Math.max(high - middle, middle - low) || 1;
    return {low: Math.min(low, middle), high: Math.max(high, middle), middle, share: (figure) => (figure - middle) / reach};
  }

  function shown(quantity) {
    const inArm = (arm) => (problemOf(arm) ? problemOf(arm).variants.map((variant) => ({arm, variant})) : []);
    if (state.show === 'pair') return inArm(chosenArm());
    return arms.filter((arm) => has(arm, quantity)).flatMap(inArm).filter(({variant}) => verdict(variant) === state.show);
  }

  function update() {
    const arm = chosenArm();
    const quantity = QUANTITIES.find(({value}) => value === state.quantity);
    const problem = problemOf(arm) || (state.show === 'pair' ? undefined : arms.map(problemOf).find(Boolean));
    about.textContent = arm.view.about || '';
    if (!problem) {
      place.replaceChildren(html('p', {class: 'empty'}, `${arm.run.label} was not inspected on this problem.`));
      return;
    }
    const scale = scaleOf(quantity);
    // One solution has the same token chosen in every arm, and keeps it when arm, colour or head change.
    const read = (name, at) => {
      state.read[name] = at;
      for (const one of solutions) if (one.name === name) one.show(at);
    };
    const solutions = shown(quantity).map((one) => solution({...one, quantity, head: state.head, scale, named: state.show !== 'pair', read}));
    const first = Math.min(...problem.variants.map((variant) => variant.changed.indexOf(true)).filter((at) => at >= 0));
    for (const one of solutions) {
      const at = one.name in state.read ? state.read[one.name] : first;
      if (Number.isFinite(at)) read(one.name, at);
    }
    place.replaceChildren(html('p', {class: 'prompt'}, withCode(problem.prompt.trim())), scaleBar(quantity, scale, solutions.some((one) => one.unknown)),
      html('div', {class: 'pair'}, solutions.map((one) => one.element)));
  }

  function rebuild() {
    const arm = chosenArm();
    const usable = QUANTITIES.filter((quantity) => arms.some((one) => has(one, quantity)));
    const pair = state.show === 'pair';
    const heads = pair ? arm.view.heads || 0 : most;
    if (pair && !has(arm, usable.find(({value}) => value === state.quantity))) state.quantity = usable.find((quantity) => has(arm, quantity)).value;
    const quantity = usable.find(({value}) => value === state.quantity);
    state.head = Math.min(state.head, heads || 1);
    const focused = panel.contains(document.activeElement) ? document.activeElement.closest('fieldset') : null;
    const group = focused ? [...panel.querySelectorAll('fieldset')].indexOf(focused) : -1;
    const set = (key, kind) => (value) => { state[key] = kind(value); rebuild(); };
    const chooser = panel.querySelector('.select') || select('Problem',
      [...new Set(arms.flatMap(({view}) => view.problems.map((one) => one.problem)))].map((name) => ({value: name, text: name})),
      (value) => { state.problem = value; state.read = {}; update(); });
    panel.replaceChildren(
      choice('Arm', arms.map(({run, i}) => ({value: String(i), text: run.label, disabled: !pair})), String(state.arm), set('arm', Number)),
      choice('Colour', usable.map((one) => ({value: one.value, text: one.text, title: one.about, disabled: pair && !has(arm, one)})), state.quantity, set('quantity', String)),
      most ? choice('Head', upTo(most).map((k) => ({value: String(k), text: '+' + k, disabled: !quantity.perHead || k > heads})), String(state.head), set('head', Number)) : '',
      arms.length > 1 ? choice('Show', [{value: 'pair', text: 'both solutions'}, {value: 'correct', text: 'correct one, all arms'},
        {value: 'incorrect', text: 'incorrect one, all arms'}], state.show, set('show', String)) : '',
      chooser);
    if (group >= 0) panel.querySelectorAll('fieldset')[group].querySelector('input:checked')?.focus();
    update();
  }
  rebuild();
  return section('tokens', 'Token by token', 'A correct and an incorrect solution of one held-out problem. Point at a token, or focus a solution and use the arrow keys, to read its figures.',
    panel, place, about);
}

// What stands between backticks is code, where they come in pairs.
function withCode(text) {
  const parts = text.split('`');
  return parts.length % 2 ? parts.map((part, i) => (i % 2 && part ? html('code', {}, part) : part)) : text;
}

function tint(part) {
  const strength = Math.min(1, Math.abs(part)) * 100;
  return `color-mix(in oklab, ${part < 0 ? 'var(--cold)' : 'var(--hot)'} ${strength.toFixed(1)}%, transparent)`;
}

function scaleBar(quantity, scale, unknown) {
  const stops = upTo(9).map((i) => tint(scale.share(scale.low + (scale.high - scale.low) * (i - 1) / 8)));
  return html('div', {class: 'scale'}, html('span', {class: 'about'}, `${quantity.text}: ${quantity.about}`),
    html('span', {class: 'ends'}, html('span', {}, short(scale.low)),
      html('span', {class: 'ramp', css: {background: `linear-gradient(to right, ${stops.join(', ')})`}, 'aria-hidden': 'true'}),
      html('span', {}, short(scale.high))),
    html('code', {class: 'token changed'}, 'changed'), unknown ? html('code', {class: 'token unknown'}, 'no figure') : null);
}

// One solution of one arm: its element, whether a token has no figure, and `show`, which reads a token without telling the others.
function solution({arm, variant, quantity, head, scale, named, read}) {
  const readout = html('div', {class: 'token-readout', 'aria-live': 'polite'}, html('p', {class: 'hint'}, 'No token chosen.'));
  const spans = variant.tokens.map((text, place) => {
    const figure = figureOf(variant, quantity, head, place);
    const end = place === variant.tokens.length - 1 && variant.ends;
    return html('span', {class: 'token' + (variant.changed[place] ? ' changed' : '') + (end ? ' end' : '') + (known(figure) ? '' : ' unknown'),
      css: known(figure) ? {'background-color': tint(scale.share(figure))} : {}, 'data-place': place}, text);
  });
  const name = verdict(variant);
  const last = spans.length - 1;
  let at = -1;
  function show(place) {
    if (at >= 0) spans[at].classList.remove('chosen');
    at = Math.min(last, Math.max(0, place));
    spans[at].classList.add('chosen');
    readout.replaceChildren(figuresOf(arm, variant, at));
  }
  const code = html('pre', {tabindex: '0', role: 'group', 'aria-label': `${name} solution in ${arm.run.label}, ${spans.length} tokens; arrow keys read them`,
    onkeydown: (event) => {
      const moves = {ArrowRight: 1, ArrowLeft: -1, ArrowDown: lineMove(variant, at, 1), ArrowUp: lineMove(variant, at, -1), Home: -spans.length, End: spans.length};
      if (!(event.key in moves)) return;
      event.preventDefault();
      read(name, Math.min(last, Math.max(0, at + moves[event.key])));
    }}, html('code', {}, spans));
  code.addEventListener('pointerover', (event) => { if (event.target.dataset.place) read(name, Number(event.target.dataset.place)); });
  code.addEventListener('focus', () => { if (at < 0) read(name, 0); });
  const title = html('h3', {class: name}, named ? [swatch(arm.i), `${arm.run.label}: `] : '', variant.correct ? '✓ correct' : '✗ incorrect');
  return {name, unknown: spans.some((span) => span.classList.contains('unknown')), show, element: html('div', {class: 'solution'}, title, code, readout)};
}

// How many tokens to the first one of the next or of the previous line.
function lineMove(variant, at, direction) {
  const starts = [0, ...variant.tokens.flatMap((text, i) => (text.includes('\n') && i + 1 < variant.tokens.length ? [i + 1] : []))];
  const line = starts.filter((start) => start <= at).length - 1;
  const wanted = starts[Math.min(starts.length - 1, Math.max(0, line + direction))];
  return at < 0 ? 1 : wanted - at;
}

function figuresOf(arm, variant, place) {
  const heads = upTo(arm.view.heads || 1);
  const perHead = QUANTITIES.filter((quantity) => quantity.perHead && variant[quantity.value]);
  const others = QUANTITIES.filter((quantity) => !quantity.perHead && variant[quantity.value]);
  return html('div', {}, html('p', {}, html('code', {}, JSON.stringify(variant.tokens[place])), ` token ${place + 1} of ${variant.tokens.length}`,
    variant.changed[place] ? ', changed' : '',
    others.map((quantity) => html('span', {class: 'figure'}, `${quantity.text} `, html('b', {}, short(figureOf(variant, quantity, 0, place)))))),
    perHead.length ? html('table', {}, html('thead', {}, html('tr', {}, html('th', {scope: 'col'}, 'head'), heads.map((k) => html('th', {scope: 'col'}, '+' + k)))),
      html('tbody', {}, perHead.map((quantity) => html('tr', {}, html('th', {scope: 'row'}, quantity.text),
        heads.map((k) => html('td', {}, short(figureOf(variant, quantity, k, place)))))))) : null);
}
