// What a critic foresaw beside what happened: its reliability curve, over the tenths of [0, 1] of wmtp.value_stats.

const TENTHS = 10;
const tenth = (place) => `${fixed(1)(place / TENTHS)} to ${fixed(1)((place + 1) / TENTHS)}`;
const foreseen = ({value, correct, tokens}) => `${fixed(3)(value)}, ${share(correct)} passed, ${counted(tokens, 'token')}`;
const brief = ({value, correct, tokens}) => `${fixed(3)(value)} · ${share(correct)} · ${whole(tokens)}`;

// The curve of each critic that has one: on held-out rows at the last evaluation, else on the last training step logged.
function reliabilities(critics) {
  return critics.map(({run, i}) => {
    const heldOut = has(run, 'validation', 'value/calibration_error');
    const of = (name) => lastOf(run, heldOut ? 'validation' : 'train', name);
    const bins = upTo(TENTHS).map((place) => {
      const [value, correct, tokens] = ['value', 'correct', 'tokens'].map((what) => of(`reliability/${what}_${place}`));
      return known(value) && known(correct) ? {value, correct, tokens} : null;
    });
    const counts = bins.map((bin) => (bin ? bin.tokens : 0));
    const total = counts.every(known) ? counts.reduce((sum, count) => sum + count, 0) : null;
    return {run: i, label: run.label, rows: heldOut ? 'held out' : 'one training step', error: of('value/calibration_error'), bins, total};
  }).filter(({bins}) => bins.some(Boolean));
}

function reliability(critics) {
  const curves = reliabilities(critics);
  if (!curves.length) return null;
  return html('div', {class: 'part'}, html('h3', {}, 'Are its values probabilities?'), html('div', {class: 'pair'},
    reliabilityChart(curves),
    html('div', {},
      html('p', {class: 'aside'}, 'Each mark is a tenth of the values: how high they are on average, and what share of their tokens stands in solutions that passed. On the diagonal a value is a probability; below it the critic hopes for too much, above it for too little. The bars are the share of tokens in each tenth. All tokens of a solution have its verdict: how sure a mark is depends on the number of solutions, which is smaller.'),
      table('Calibration', ['run', 'error', 'tokens', 'rows'], curves.map(({run, label, rows, error, total}) => [{text: label, run}, fixed(3)(error), whole(total), rows])),
      html('p', {class: 'aside'}, 'The error is the mean distance from the diagonal over tokens (expected calibration error).'))));
}

// A square, its diagonal, a curve for each run; under it the tokens of each tenth.
function reliabilityChart(curves) {
  const title = 'Share that passed by value';
  const told = curves.map(({label, bins}) => `${label}: ${bins.filter(Boolean).map(foreseen).join('; ')}`).join('. ');
  const readout = html('div', {class: 'readout', 'aria-live': 'polite'});
  const picture = svg('svg', {role: 'img', tabindex: '0', 'aria-label': `${title}. ${told}. The arrow keys read the figures.`});
  const holder = html('div', {class: 'plot'}, picture, readout);
  const shares = curves.map(({bins, total}) => bins.map((bin) => (bin && total ? bin.tokens / total : 0)));
  const most = Math.max(...shares.flat());
  const bars = most ? {gap: 22, height: 56} : {gap: 0, height: 0};
  let scale;

  function draw() {
    const width = Math.max(holder.clientWidth, 220);
    const left = 46;
    const side = width - left - 10;
    const x = (value) => left + value * side;
    const y = (part) => 10 + (1 - part) * side;
    const foot = 10 + side + bars.gap + bars.height;
    scale = {x, y, side, foot, width};
    const step = side / TENTHS;
    const thick = (step - 4) / curves.length;
    picture.setAttribute('viewBox', `0 0 ${width} ${foot + 36}`);
    picture.setAttribute('width', width);
    picture.setAttribute('height', foot + 36);
    picture.replaceChildren(
      ...[0, 0.2, 0.4, 0.6, 0.8, 1].map((place) => svg('g', {class: 'tick'},
        svg('line', {x1: x(0), x2: x(1), y1: y(place), y2: y(place)}),
        svg('text', {x: left - 8, y: y(place) + 4, 'text-anchor': 'end'}, fixed(0)(100 * place) + ' %'),
        svg('text', {x: x(place), y: foot + 17, 'text-anchor': 'middle'}, fixed(1)(place)))),
      svg('line', {class: 'diagonal', x1: x(0), y1: y(0), x2: x(1), y2: y(1)}),
      svg('text', {class: 'axis', x: x(1), y: foot + 34, 'text-anchor': 'end'}, 'mean value of a tenth'),
      most ? svg('g', {class: 'tick'}, svg('line', {x1: x(0), x2: x(1), y1: foot, y2: foot}),
        svg('text', {x: left - 8, y: foot - bars.height + 8, 'text-anchor': 'end'}, fixed(0)(100 * most) + ' %'),
        svg('text', {x: left - 8, y: foot, 'text-anchor': 'end'}, 'tokens')) : '',
      ...shares.flatMap((parts, row) => parts.map((part, place) => svg('rect', {class: 'bar', x: x(place / TENTHS) + 2 + row * thick,
        y: foot - (part / (most || 1)) * bars.height, width: thick, height: (part / (most || 1)) * bars.height, css: {fill: color(curves[row].run)}}))),
      ...curves.map(({run, bins}) => drawSeries({run, kind: 'points', points: bins.filter(Boolean).map(({value, correct}) => [value, correct])}, x, y, false)),
      svg('g', {class: 'cursor'}));
    again();
  }

  function tell(place) {
    const {x, y, side, foot, width} = scale;
    const seen = curves.filter(({bins}) => bins[place]);
    const lines = curves.map(({run, label, bins}) => html('li', {}, swatch(run), html('span', {}, label),
      html('b', {}, bins[place] ? brief(bins[place]) : 'no tokens')));
    return {x: x((place + 0.5) / TENTHS), width, heading: `values ${tenth(place)}: mean · passed · tokens`, lines, marks: [
      svg('rect', {x: x(place / TENTHS), y: 10, width: side / TENTHS, height: foot - 10}),
      ...seen.map(({run, bins}) => svg('circle', {cx: x(bins[place].value), cy: y(bins[place].correct), r: 4.5, css: {stroke: color(run)}}))]};
  }

  const again = readable(picture, readout, TENTHS, tell,
    (at) => Math.min(TENTHS - 1, Math.max(0, Math.floor(((at - scale.x(0)) / scale.side) * TENTHS))));
  new ResizeObserver(draw).observe(holder);
  return html('figure', {class: 'chart square'}, html('figcaption', {}, title), holder,
    asTable(() => table(title, ['run', 'values', 'mean value', 'passed', 'tokens'], curves.flatMap(({run, label, bins}) =>
      bins.map((bin, place) => [{text: label, run}, tenth(place), ...(bin ? [fixed(3)(bin.value), share(bin.correct), whole(bin.tokens)] : [MISSING, MISSING, '0'])])))));
}
