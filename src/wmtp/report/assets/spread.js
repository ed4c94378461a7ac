// Where the weight goes: of the solutions that wmtp inspect looked at, how large weights are, and which tokens have them.

const UP_TO = [0, 0.25, 0.5, 0.75, 1.25, 2, 3];
const BINS = ['0', ...UP_TO.slice(1).map((edge) => `to ${edge}`), `above ${UP_TO[UP_TO.length - 1]}`];
const binOf = (weight) => UP_TO.filter((edge) => weight > edge).length;
const shaded = (part) => ({'background-color': `color-mix(in oklab, var(--shade) ${(60 * part).toFixed(0)}%, transparent)`});

function spread(runs) {
  const found = runs.map((run, i) => ({run, i, view: run.tokens}))
    .filter(({view}) => view && view.heads && view.problems.some((problem) => problem.variants.some((variant) => variant.weight)));
  if (!found.length) return null;
  const most = Math.max(...found.map(({view}) => view.heads || 0));
  const state = {head: '1'};
  const place = html('div', {id: 'spread'});

  function sizes(head) {
    return table(`Weights of head ${head}: share of tokens by size`, ['run', 'tokens', ...BINS], found.map(({run, i, view}) => {
      const all = view.problems.flatMap((problem) => problem.variants.flatMap((variant) => (variant.weight || [])[head - 1] || [])).filter(known);
      const shares = BINS.map((_, bin) => all.filter((weight) => binOf(weight) === bin).length / all.length);
      return [{text: run.label, run: i}, whole(all.length), ...shares.map((part) => (all.length ? {text: share(part), css: shaded(part)} : MISSING))];
    }));
  }

  function means(head, group, title) {
    const groups = found.map(({view}) => (view.weights || {})[group] || {});
    const names = [...new Set(groups.flatMap(Object.keys))];
    if (!names.length) return '';
    const figures = groups.map((one) => names.map((name) => (one[name] ? one[name].weight[head - 1] : null)));
    const highest = Math.max(...figures.flat().filter(known), 1);
    return table(`Mean weight of head ${head} by ${title}`, ['run', ...names], found.map(({run, i}, row) =>
      [{text: run.label, run: i}, ...figures[row].map((figure, at) => (known(figure)
        ? {text: fixed(3)(figure), sub: counted(groups[row][names[at]].tokens, 'token'), css: shaded(figure / highest)} : MISSING))]));
  }

  function update() {
    const head = Number(state.head);
    place.replaceChildren(sizes(head), means(head, 'by_class', 'token class'), means(head, 'by_position', 'position in the response'));
  }
  update();
  return html('div', {class: 'part'}, html('h3', {}, 'Where the weight goes'),
    html('p', {class: 'aside'}, 'Of the held-out solutions that wmtp inspect looked at, correct and incorrect ones.'),
    html('div', {class: 'controls'}, choice('Head', upTo(most).map((k) => ({value: String(k), text: '+' + k})), state.head, (value) => { state.head = value; update(); })),
    place);
}
