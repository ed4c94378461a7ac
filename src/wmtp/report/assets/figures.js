// Arms side by side, curves, weights, values: what metrics.jsonl holds.

const column = (run, split, name) => run.series[split].values[name] || [];
const headsOf = (run) => {
  const names = [...Object.keys(run.series.validation.values), ...Object.keys(run.series.train.values)];
  return Math.max(0, ...names.map((name) => Number((/^loss\/nll_head_(\d+)$/.exec(name) || [0, 0])[1])));
};
const lastOf = (run, split, name) => {
  const values = column(run, split, name);
  return values.length ? values[values.length - 1] : null;
};
const has = (run, split, name) => column(run, split, name).some(known);
const points = (run, split, name, along) =>
  column(run, split, along).map((x, i) => [x, column(run, split, name)[i]]).filter(([x, y]) => known(x) && known(y));
const upTo = (count) => Array.from({length: count}, (_, i) => i + 1);

function atAGlance({runs}) {
  const heads = Math.max(0, ...runs.map(headsOf));
  const policies = runs.map((run, i) => ({run, i})).filter(({run}) => headsOf(run) > 0);
  const rows = runs.map((run, i) => {
    const of = (name) => lastOf(run, 'validation', name);
    return [{text: run.label, run: i},
      ...upTo(heads).map((k) => ({text: fixed(3)(of(`loss/nll_head_${k}`)), sub: known(of(`acc/head_${k}`)) ? share(of(`acc/head_${k}`)) : null})),
      known(of('weight/mean')) ? `${fixed(2)(of('weight/mean'))} ± ${fixed(2)(of('weight/std'))}` : MISSING,
      known(of('weight/ess')) ? share(of('weight/ess')) : MISSING,
      whole(speedOf(run)), bytes(peakOf(run)), whole(lastOf(run, 'train', 'step'))];
  });
  const chart = dotChart({title: 'Held-out nll per head (nats; lower is better)', format: fixed(3),
    rows: upTo(heads).map((k) => ({name: `token +${k}`, dots: policies.map(({run, i}) =>
      ({run: i, label: run.label, value: lastOf(run, 'validation', `loss/nll_head_${k}`)})).filter((dot) => known(dot.value))}))});
  return section('glance', 'Side by side',
    'Figures on held-out rows at the last evaluation, unweighted: head k predicts the token k places ahead. Under each nll, the share of tokens that were the most likely one.',
    legend(runs), chart,
    table('Runs side by side', ['run', ...upTo(heads).map((k) => `nll +${k}`), 'weight', 'effective share', 'tokens/s', 'peak memory', 'steps'], rows),
    html('p', {class: 'aside'}, 'Weight is mean ± standard deviation over held-out tokens; the effective share is the effective sample size over the number of tokens. Tokens per second is the median of the logged steps; memory is the process’ peak. One run is one seed: no interval can be given for these figures, and differences between rows may be chance.'));
}

const median = (values) => {
  const sorted = values.filter(known).sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return !sorted.length ? null : sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
};
const speedOf = (run) => median(column(run, 'train', 'time/tokens_per_s'));
const peakOf = (run) => {
  const values = column(run, 'train', 'mem/peak_bytes').filter(known);
  return values.length ? Math.max(...values) : null;
};

const MEASURES = [
  {value: 'nll', text: 'nll', title: 'unweighted', name: (k) => (k ? `loss/nll_head_${k}` : 'loss/nll'), format: fixed(4)},
  {value: 'weighted', text: 'weighted loss', name: (k) => (k ? null : 'loss/weighted'), format: fixed(4)},
  {value: 'accuracy', text: 'accuracy', name: (k) => (k ? `acc/head_${k}` : null), format: share, floor: 0},
  {value: 'norm', text: 'gradient norm', name: (k) => (k ? null : 'grad_norm'), format: short, floor: 0},
  {value: 'lr', text: 'learning rate', name: (k) => (k ? null : 'lr'), format: (value) => value.toExponential(2), floor: 0},
  {value: 'speed', text: 'tokens/s', name: (k) => (k ? null : 'time/tokens_per_s'), format: whole, floor: 0},
];

function curves({runs}) {
  const heads = Math.max(0, ...runs.map(headsOf));
  const state = {measure: heads ? 'nll' : 'weighted', head: 0, along: 'step', splits: 'both', hidden: new Set()};
  const measures = MEASURES.filter((measure) => runs.some((run) =>
    [0, ...upTo(heads)].some((k) => measure.name(k) && (has(run, 'train', measure.name(k)) || has(run, 'validation', measure.name(k))))));
  if (!measures.length) return null;
  const place = html('div', {id: 'curve'});
  const panel = html('div', {class: 'controls'});

  function update() {
    const measure = measures.find((one) => one.value === state.measure) || measures[0];
    const perHead = upTo(heads).filter((k) => measure.name(k));
    if (!measure.name(state.head)) state.head = perHead[0] || 0;
    const name = measure.name(state.head);
    const series = runs.flatMap((run, i) => (state.hidden.has(i) ? [] : [
      {split: 'train', kind: 'line', suffix: ''}, {split: 'validation', kind: 'points', suffix: ', held out'},
    ].filter(({split}) => state.splits === 'both' || state.splits === split).map(({split, kind, suffix}) =>
      ({run: i, kind, label: run.label + suffix, points: points(run, split, name, state.along)}))));
    const where = state.head ? ` of head ${state.head}` : measure.value === 'nll' ? ' of all heads' : '';
    place.replaceChildren(lineChart({title: measure.text + where, series, format: measure.format, floor: measure.floor,
      xLabel: state.along === 'step' ? 'step' : 'tokens', height: 340}));
    return {measure, perHead};
  }

  function rebuild() {
    const {measure, perHead} = update();
    const focused = document.activeElement && panel.contains(document.activeElement) ? document.activeElement.value : null;
    const set = (key) => (value) => { state[key] = key === 'head' ? Number(value) : value; rebuild(); };
    panel.replaceChildren(
      choice('Figure', measures.map(({value, text, title}) => ({value, text, title})), measure.value, set('measure')),
      heads ? choice('Head', [{value: '0', text: 'all', disabled: !measure.name(0)},
        ...upTo(heads).map((k) => ({value: String(k), text: '+' + k, disabled: !perHead.includes(k)}))], String(state.head), set('head')) : '',
      choice('Rows', [{value: 'both', text: 'both'}, {value: 'train', text: 'training'}, {value: 'validation', text: 'held out'}], state.splits, set('splits')),
      choice('Along', [{value: 'step', text: 'steps'}, {value: 'tokens', text: 'tokens'}], state.along, set('along')),
      html('fieldset', {class: 'choice runs'}, html('legend', {}, 'Runs'), html('div', {class: 'options'}, runs.map((run, i) =>
        html('label', {}, html('input', {type: 'checkbox', value: `run-${i}`, checked: !state.hidden.has(i),
          onchange: () => { if (!state.hidden.delete(i)) state.hidden.add(i); update(); }}), html('span', {}, swatch(i), run.label))))));
    if (focused !== null) panel.querySelector(`input[value="${focused}"]:checked`)?.focus();
  }
  rebuild();
  const thinned = runs.some((run) => ['train', 'validation'].some((split) => run.series[split].logged > column(run, split, 'step').length));
  return section('curves', 'Learning curves', 'Lines are training steps, dashed lines with marks are held-out rows. Point at the chart, or focus it and use the arrow keys, to read figures.',
    panel, place, thinned ? html('p', {class: 'aside'}, 'Long runs are thinned: the page keeps evenly spread log points; metrics.jsonl has them all.') : null);
}

const WEIGHTS = [['weight/mean', 'mean', 0], ['weight/std', 'standard deviation', 0], ['weight/ess', 'effective sample size, share of tokens', 0],
  ['weight/entropy', 'entropy, share of its largest', undefined], ['weight/min', 'smallest', 0], ['weight/max', 'largest', 0]];

function weights({runs}) {
  const weighted = runs.map((run, i) => ({run, i})).filter(({run}) => has(run, 'train', 'weight/mean'));
  if (!weighted.length) return null;
  const charts = WEIGHTS.filter(([name]) => weighted.some(({run}) => has(run, 'train', name))).map(([name, title, floor]) =>
    lineChart({title, format: short, xLabel: 'step', height: 190, floor,
      series: weighted.map(({run, i}) => ({run: i, kind: 'line', label: run.label, points: points(run, 'train', name, 'step')}))}));
  return section('weights', 'Weights over time', 'Of the (token, head) weights in each logged training step. Effective sample size and entropy are 1 where all weights are equal.',
    html('div', {class: 'legend'}, weighted.map(({run, i}) => html('span', {}, swatch(i), run.label))), html('div', {class: 'grid'}, charts), spread(runs));
}

const VALUES = [['value/pair_accuracy', 'pairs ranked right', share], ['value/margin', 'margin between correct and incorrect', short],
  ['value/std', 'standard deviation of values', short], ['loss/weighted', 'loss', short]];

function values({runs}) {
  const critics = runs.map((run, i) => ({run, i})).filter(({run}) => has(run, 'train', 'value/mean') || has(run, 'validation', 'value/mean'));
  if (!critics.length) return null;
  const charts = VALUES.filter(([name]) => critics.some(({run}) => has(run, 'train', name) || has(run, 'validation', name))).map(([name, title, format]) =>
    lineChart({title, format, xLabel: 'step', height: 190, series: critics.flatMap(({run, i}) => [
      {run: i, kind: 'line', label: run.label, points: points(run, 'train', name, 'step')},
      {run: i, kind: 'points', label: run.label + ', held out', points: points(run, 'validation', name, 'step')}])}));
  const rows = critics.map(({run, i}) => [{text: run.label, run: i}, share(lastOf(run, 'validation', 'value/pair_accuracy')),
    short(lastOf(run, 'validation', 'value/margin')), short(lastOf(run, 'validation', 'loss/weighted')), whole(speedOf(run)), bytes(peakOf(run))]);
  return section('values', 'The critic', 'A value model learns which solutions pass their tests. Chance ranks half of the (correct, incorrect) pairs right.',
    table('Critics on held-out pairs', ['run', 'pairs ranked right', 'margin', 'loss', 'tokens/s', 'peak memory'], rows), html('div', {class: 'grid'}, charts), reliability(critics));
}
