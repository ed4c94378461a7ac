// What wmtp eval left in RUN/eval: shown where it is there.

function evaluations({runs}) {
  const parts = [benchmarks(runs), perplexity(runs), byHead(runs), speed(runs)].filter(Boolean);
  if (!parts.length) return null;
  return section('evaluation', 'Evaluation', 'From wmtp eval. Intervals are the ones its files give: 95 %, over problems or rows of this one model; they do not hold the spread between seeds.', legend(runs), parts);
}

const percent = {floor: 0, shown: [0], format: (value) => fixed(0)(100 * value) + ' %'};
const withInterval = (format, of) => (of && known(of.mean) ? {text: format(of.mean), sub: known(of.low) ? `${format(of.low)} to ${format(of.high)}` : null} : MISSING);

function benchmarks(runs) {
  const found = runs.flatMap((run, i) => run.evaluations.benchmarks.flatMap((benchmark) =>
    benchmark.results.map((result) => ({run, i, benchmark, result}))));
  if (!found.length) return null;
  const ks = [...new Set(found.flatMap(({result}) => Object.keys(result.pass_at_k)))].sort((a, b) => a - b);
  const named = ({benchmark, result}) => `${benchmark.benchmark} (${result.suite}${known(result.temperature) ? `, T ${result.temperature}` : ''})`;
  const rows = found.map((one) => [{text: one.run.label, run: one.i}, named(one), whole(one.benchmark.problems), whole(one.result.samples),
    ...ks.map((k) => withInterval(share, one.result.pass_at_k[k])), withInterval(share, one.result.exact_match),
    Object.entries(one.result.statuses || {}).map(([status, count]) => `${whole(count)} ${status}`).join(', ')]);
  const kinds = [...new Set(found.map(named))];
  const chart = dotChart({title: 'pass@k with 95 % intervals over problems', format: share, axis: percent,
    rows: kinds.flatMap((kind) => ks.map((k) => ({name: kinds.length > 1 ? `${kind} @${k}` : `pass@${k}`,
      dots: found.filter((one) => named(one) === kind && one.result.pass_at_k[k]).map(({run, i, result}) =>
        ({run: i, label: run.label, value: result.pass_at_k[k].mean, low: result.pass_at_k[k].low, high: result.pass_at_k[k].high}))})))});
  return html('div', {class: 'part'}, html('h3', {}, 'Programs that pass their tests'), chart,
    table('Benchmarks', ['run', 'benchmark', 'problems', 'samples', ...ks.map((k) => `pass@${k}`), 'exact match', 'what programs did'], rows));
}

function perplexity(runs) {
  const found = runs.map((run, i) => ({run, i, of: run.evaluations.perplexity})).filter(({of}) => of);
  if (!found.length) return null;
  return html('div', {class: 'part'}, html('h3', {}, 'Perplexity of the next token'),
    dotChart({title: 'Perplexity with 95 % intervals over rows (lower is better)', format: fixed(2), rows: [{name: 'head 1',
      dots: found.map(({run, i, of}) => ({run: i, label: run.label, value: of.perplexity.mean, low: of.perplexity.low, high: of.perplexity.high}))}]}),
    table('Perplexity', ['run', 'perplexity', 'bits per byte', 'tokens', 'rows'], found.map(({run, i, of}) =>
      [{text: run.label, run: i}, withInterval(fixed(2), of.perplexity), fixed(3)(of.bits_per_byte), whole(of.tokens), whole(of.rows)])));
}

const HEAD_FIGURES = [{value: 'accuracy', text: 'accuracy', format: share}, {value: 'nll', text: 'nll', format: fixed(3)},
  {value: 'perplexity', text: 'perplexity', format: fixed(1)}, {value: 'confidence', text: 'confidence', format: share}];

function byHead(runs) {
  const found = runs.map((run, i) => ({run, i, heads: run.evaluations.heads && run.evaluations.heads.heads})).filter(({heads}) => heads && heads.length);
  if (!found.length) return null;
  const most = Math.max(...found.map(({heads}) => heads.length));
  const state = {figure: 'accuracy', head: '1'};
  const place = html('div', {id: 'by-head'});
  function update() {
    const {text, format, value} = HEAD_FIGURES.find((one) => one.value === state.figure);
    const of = ({heads}) => heads[Number(state.head) - 1];
    const shown = found.filter(of);
    const cells = shown.flatMap((one) => ['by_class', 'by_position'].flatMap((group) => Object.values(of(one)[group] || {}).map((part) => part[value]))).filter(known);
    const [low, high] = [Math.min(...cells), Math.max(...cells)];
    const shade = (figure) => ({'background-color': known(figure) && high > low
      ? `color-mix(in oklab, var(--shade) ${(8 + 52 * (figure - low) / (high - low)).toFixed(0)}%, transparent)` : 'transparent'});
    const grid = (group, title) => {
      const names = [...new Set(shown.flatMap((one) => Object.keys(of(one)[group] || {})))];
      return table(`${text} of head ${state.head} by ${title}`, ['run', 'all', ...names], shown.map((one) => [{text: one.run.label, run: one.i},
        format(of(one)[value]), ...names.map((name) => {
          const part = (of(one)[group] || {})[name];
          return part ? {text: format(part[value]), sub: counted(part.tokens, 'token'), css: shade(part[value])} : MISSING;
        })]));
    };
    place.replaceChildren(grid('by_class', 'token class'), grid('by_position', 'position in the response'));
  }
  update();
  return html('div', {class: 'part'}, html('h3', {}, 'Heads by token class and position'), html('div', {class: 'controls'},
    choice('Figure', HEAD_FIGURES, state.figure, (value) => { state.figure = value; update(); }),
    choice('Head', upTo(most).map((k) => ({value: String(k), text: '+' + k})), state.head, (value) => { state.head = value; update(); })), place);
}

function speed(runs) {
  const found = runs.flatMap((run, i) => ((run.evaluations.speed || {}).rows || []).map((row) => ({run, i, row})));
  if (!found.length) return null;
  const settingOf = ({row}) => `batch ${row.batch}, prompt ${row.prompt_tokens}`;
  const settings = [...new Set(found.map(settingOf))];
  const inSetting = (name, of) => found.filter((one) => settingOf(one) === name)
    .map(({run, i, row}) => ({run: i, label: run.label, ...of(row)})).filter((dot) => known(dot.value));
  const drafts = Math.max(0, ...found.map(({row}) => (row.acceptance || []).length));
  return html('div', {class: 'part'}, html('h3', {}, 'Decoding with the heads'),
    dotChart({title: 'Speed with heads over plain speed (above 1 is faster)', format: fixed(2), axis: {floor: 0, shown: [0, 1]}, rows: settings.map((name) =>
      ({name, dots: inSetting(name, (row) => ({value: row.speedup, low: row.speedup_lowest, high: row.speedup_highest}))}))}),
    dotChart({title: `Share of drafts accepted (${settings[0]})`, format: share, axis: percent, rows: upTo(drafts).map((k) =>
      ({name: `token +${k + 1}`, dots: inSetting(settings[0], (row) => ({value: (row.acceptance || [])[k - 1]}))}))}),
    table('Greedy decoding: plain, and with heads drafting', ['run', 'batch', 'prompt', 'plain tokens/s', 'with heads', 'ratio', 'tokens per forward', 'accepted, by place', 'same tokens'],
      found.map(({run, i, row}) => [{text: run.label, run: i}, whole(row.batch), whole(row.prompt_tokens), whole(row.plain_tokens_per_s), whole(row.speculative_tokens_per_s),
        {text: fixed(2)(row.speedup), sub: known(row.speedup_lowest) ? `${fixed(2)(row.speedup_lowest)} to ${fixed(2)(row.speedup_highest)}` : null},
        fixed(2)(row.tokens_per_forward), (row.acceptance || []).map((value) => (known(value) ? fixed(0)(100 * value) + ' %' : MISSING)).join(' · '),
        row.same_tokens === undefined ? MISSING : row.same_tokens ? 'yes' : 'no'])),
    html('p', {class: 'aside'}, 'Ratios are lowest to highest over the repetitions of one measurement on one machine.'));
}
