// Arms over seeds: what study.json says.

const overSeeds = (value, signed) => {
  if (!value) return MISSING;
  const text = (number) => (signed && number > 0 ? '+' : '') + fixed(4)(number);
  return {text: text(value.mean), sub: `${text(value.low)} to ${text(value.high)}`};
};

function studies({studies, runs}) {
  if (!studies.length) return null;
  return section('study', 'Over seeds', 'Mean and 95 % bootstrap interval over seeds. Differences are from the baseline, paired by seed: the same rows in the same order from the same initial weights.',
    studies.map((study) => oneStudy(study, runs)));
}

function oneStudy(study, runs) {
  const label = (row) => (row.about ? `${row.arm} (${row.about})` : row.arm);
  const place = (row, i) => { // an arm has the colour of its run, where that is on the page
    const found = runs.findIndex((run) => run.label.split('/').pop() === `${row.arm}-seed${study.seeds[0]}`);
    return found < 0 ? runs.length + i : found;
  };
  const arms = study.arms.map((row, i) => ({row, run: place(row, i), curve: study.curves[row.arm]}));
  const rows = arms.map(({row, run}) => [{text: label(row), run}, overSeeds(row.mean), overSeeds(row.difference, true),
    known(row.p_holm) ? {text: row.p_holm.toPrecision(3), sub: `uncorrected ${row.p.toPrecision(3)}`} : MISSING,
    fixed(2)(row.effect), whole(Object.keys(row.values).length),
    ...['steps', 'tokens'].map((name) => (row.spent ? whole(row.spent[name]) : MISSING)),
    row.spent && known(row.spent.flops) ? row.spent.flops.toExponential(2) : MISSING, row.spent ? fixed(1)(row.spent.seconds) : MISSING]);
  const dots = arms.filter(({row}) => row.mean).map(({row, run}) =>
    ({name: row.arm, dots: [{run, label: row.arm, value: row.mean.mean, low: row.mean.low, high: row.mean.high}]}));
  const along = arms.map(({row, run, curve}) => ({run, kind: 'line', label: row.arm, points: curve.map((point) => [point.tokens, point.mean])}));
  const points = arms.flatMap(({row, run, curve}) => curve.map((point) =>
    [{text: row.arm, run}, whole(point.step), whole(point.tokens), overSeeds(point), whole(point.count)]));
  const left = study.runs.filter((run) => run.state !== 'done').map((run) => `${run.run}: ${run.state}`);
  const said = [...study.arms.map((row) => row.sentence), ...study.notes, ...left].filter(Boolean);
  return html('div', {},
    html('h3', {}, `${study.study}: ${study.metric.name}, ${study.metric.better} is better`),
    html('ul', {}, said.map((text) => html('li', {}, text))),
    dotChart({title: `${study.metric.name}: mean and interval over seeds`, format: fixed(4), rows: dots}),
    table(`Arms beside ${study.baseline}`, ['arm', 'mean', 'difference', 'p (Holm)', 'effect', 'seeds', 'steps', 'tokens', 'FLOPs', 'seconds'], rows),
    along.some((line) => line.points.length > 1) ? lineChart({title: `${study.metric.name}, mean over seeds`, format: fixed(4), xLabel: 'tokens', height: 260, series: along}) : null,
    html('details', {class: 'figures'}, html('summary', {}, 'Intervals along the curve'), table('Curve', ['arm', 'step', 'tokens', 'mean', 'seeds'], points)),
    html('p', {class: 'aside'}, `p is that of Wilcoxon’s signed-rank test, exact, corrected by Holm; the effect is the rank-biserial correlation, -1 to 1. What an arm spent is the mean over seeds. Below are the ${study.shown} runs of seed ${study.seeds[0]}; name other runs to see them.`));
}
