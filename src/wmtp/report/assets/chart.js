// Line charts and dot charts. A chart is drawn for the width it has, and drawn again when that changes.

function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.7);
  const places = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) places.push(i * step);
  return {places, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9))};
}

function extent(values, floor) {
  let low = Math.min(...values);
  let high = Math.max(...values);
  if (floor !== undefined && low >= floor && low < floor + 0.4 * (high - floor)) low = floor;
  const space = (high - low) * 0.06 || Math.abs(high) * 0.05 || 1;
  return [low === floor ? low : low - space, high + space];
}

const compact = (value, digits) =>
  Math.abs(value) >= 1e6 ? fixed(1)(value / 1e6).replace(/\.0$/, '') + 'M'
    : Math.abs(value) >= 1e4 ? fixed(0)(value / 1e3) + 'k'
    : value !== 0 && Math.abs(value) < 1e-3 ? value.toExponential(0) : fixed(digits)(value);

// series: [{run, label, kind: 'line' | 'points', points: [[x, y], ...]}]
function lineChart({title, series, xLabel, format, height = 300, floor}) {
  const drawn = series.filter((one) => one.points.length);
  if (!drawn.length) return html('p', {class: 'empty'}, title + ': nothing was logged.');
  const readout = html('div', {class: 'readout', 'aria-live': 'polite'});
  const holder = html('div', {class: 'plot'});
  const last = drawn.map((one) => `${one.label} ${format(one.points[one.points.length - 1][1])}`).join(', ');
  const picture = svg('svg', {role: 'img', tabindex: '0', height,
    'aria-label': `${title} over ${xLabel}. Last: ${last}. The arrow keys read the figures.`});
  holder.append(picture, readout);
  const all = [...new Set(drawn.flatMap((one) => one.points.map((point) => point[0])))].sort((a, b) => a - b);
  const ys = drawn.flatMap((one) => one.points.map((point) => point[1]));
  const [yLow, yHigh] = extent(ys, floor);
  const [xLow, xHigh] = all.length > 1 ? [all[0], all[all.length - 1]] : [all[0] - 1, all[0] + 1];
  let scale;

  function draw() {
    const width = Math.max(holder.clientWidth, 220);
    const yTicks = ticks(yLow, yHigh, Math.max(4, Math.round(height / 55)));
    const texts = yTicks.places.map((value) => compact(value, yTicks.digits));
    const box = {left: 12 + 6.6 * Math.max(...texts.map((text) => text.length)), right: width - 10, top: 10, bottom: height - 36};
    const x = (value) => box.left + ((value - xLow) / (xHigh - xLow)) * (box.right - box.left);
    const y = (value) => box.bottom - ((value - yLow) / (yHigh - yLow)) * (box.bottom - box.top);
    scale = {x, y, box, width};
    const xTicks = ticks(xLow, xHigh, Math.max(3, Math.floor(width / 110)));
    picture.setAttribute('viewBox', `0 0 ${width} ${height}`);
    picture.setAttribute('width', width);
    picture.replaceChildren(
      ...yTicks.places.map((value, i) => svg('g', {class: 'tick'},
        svg('line', {x1: box.left, x2: box.right, y1: y(value), y2: y(value)}),
        svg('text', {x: box.left - 8, y: y(value) + 4, 'text-anchor': 'end'}, texts[i]))),
      ...xTicks.places.map((value) => svg('text', {class: 'tick', x: x(value), y: box.bottom + 17, 'text-anchor': 'middle'},
        compact(value, xTicks.digits))),
      svg('text', {class: 'axis', x: box.right, y: height - 2, 'text-anchor': 'end'}, xLabel),
      ...drawn.map((one) => drawSeries(one, x, y, drawn.every(({kind}) => kind === 'line'))),
      svg('g', {class: 'cursor'}));
    again();
  }

  function tell(place) {
    const value = all[place];
    const {x, y, box, width} = scale;
    const near = drawn.map((one) => ({one, point: one.points.find((point) => point[0] === value)})).filter(({point}) => point);
    return {x: x(value), width, heading: `${xLabel} ${whole(value)}`,
      lines: near.map(({one, point}) => html('li', {}, swatch(one.run), html('span', {}, one.label), html('b', {}, format(point[1])))),
      marks: [svg('line', {x1: x(value), x2: x(value), y1: box.top, y2: box.bottom}),
        ...near.map(({one, point}) => svg('circle', {cx: x(value), cy: y(point[1]), r: 4.5, css: {stroke: color(one.run)}}))]};
  }

  const again = readable(picture, readout, all.length, tell, (at) => {
    const wanted = xLow + ((at - scale.box.left) / (scale.box.right - scale.box.left)) * (xHigh - xLow);
    return all.reduce((best, value, i) => (Math.abs(value - wanted) < Math.abs(all[best] - wanted) ? i : best), 0);
  });
  new ResizeObserver(draw).observe(holder);
  return html('figure', {class: 'chart'}, html('figcaption', {}, title), holder, asTable(() => {
    const maps = drawn.map((one) => new Map(one.points));
    return table(title, [xLabel, ...drawn.map((one) => one.label)],
      all.map((value) => [whole(value), ...maps.map((map) => (map.has(value) ? format(map.get(value)) : MISSING))]));
  }));
}

// A picture that is read place by place, with the pointer and with the arrow keys: `tell` gives the readout of a place and
// its marks in the picture, `nearest` the place that is so many pixels from the left. To be called again after drawing.
function readable(picture, readout, count, tell, nearest) {
  let at = null;

  function show(place) {
    at = place;
    const {x, width, heading, lines, marks} = tell(place);
    picture.querySelector('.cursor').replaceChildren(...marks);
    readout.replaceChildren(html('strong', {}, heading), html('ul', {}, lines));
    readout.classList.add('on');
    const left = x + 14 + readout.offsetWidth > width ? x - 14 - readout.offsetWidth : x + 14;
    readout.style.setProperty('left', `${Math.max(0, left)}px`);
  }

  function hide() {
    at = null;
    readout.classList.remove('on');
    picture.querySelector('.cursor')?.replaceChildren();
  }

  picture.addEventListener('pointermove', (event) => show(nearest(event.clientX - picture.getBoundingClientRect().left)));
  picture.addEventListener('pointerleave', hide);
  picture.addEventListener('blur', hide);
  picture.addEventListener('keydown', (event) => {
    const moves = {ArrowRight: 1, ArrowLeft: -1, Home: -count, End: count};
    if (event.key === 'Escape') hide();
    if (!(event.key in moves)) return;
    event.preventDefault();
    const start = at === null ? (moves[event.key] > 0 ? -1 : count) : at;
    show(Math.min(count - 1, Math.max(0, start + moves[event.key])));
  });
  return () => { if (at !== null) show(at); };
}

// Lines end in the mark of their run, unless there are marked lines beside them.
function drawSeries({run, kind, points}, x, y, ended) {
  const d = points.map(([a, b], i) => `${i ? 'L' : 'M'}${x(a).toFixed(1)},${y(b).toFixed(1)}`).join('');
  const line = svg('path', {class: 'line ' + kind, d, css: {stroke: color(run)}});
  const few = points.length <= 60;
  const marks = kind === 'points' && few ? points : kind === 'points' || ended || points.length === 1 ? points.slice(-1) : [];
  return svg('g', {}, line, marks.map(([a, b]) => mark(run, x(a), y(b), 4)));
}

// The same figures as text: made when it is asked for.
function asTable(make) {
  const details = html('details', {class: 'figures'}, html('summary', {}, 'Figures as a table'));
  details.addEventListener('toggle', () => {
    if (!details.querySelector('table')) details.append(make());
  });
  return details;
}

// One row per name, one mark per run; an interval where there is one. rows: [{name, dots: [{run, label, value, low, high}]}]
function dotChart({title, rows, format, axis}) {
  const lines = rows.filter((row) => row.dots.length);
  if (!lines.length) return null;
  const holder = html('div', {class: 'plot'});
  const spread = 11;
  const told = lines.map((row) => `${row.name}: ` + row.dots.map((dot) => `${dot.label} ${format(dot.value)}` +
    (known(dot.low) ? ` (${format(dot.low)} to ${format(dot.high)})` : '')).join(', ')).join('. ');
  const picture = svg('svg', {role: 'img', 'aria-label': `${title}. ${told}.`});
  holder.append(picture);
  const [low, high] = extent(lines.flatMap((row) => row.dots.flatMap((dot) =>
    [dot.value, dot.low, dot.high].filter(known))).concat((axis && axis.shown) || []), axis && axis.floor);

  function draw() {
    const width = Math.max(holder.clientWidth, 220);
    const room = 14 + 7.4 * Math.max(...lines.map((row) => row.name.length));
    const above = room > 0.42 * width ? 18 : 0; // long names on a narrow screen stand above their row
    const left = above ? 8 : room;
    const heights = lines.map((row) => above + Math.max(34, spread * row.dots.length + 14));
    const height = heights.reduce((sum, value) => sum + value, 0) + 34;
    const x = (value) => left + 8 + ((value - low) / (high - low)) * (width - left - 32);
    const marks = ticks(low, high, Math.max(4, Math.floor(width / 120)));
    const inside = [];
    let top = 4;
    lines.forEach((row, i) => {
      const middle = top + (heights[i] + above) / 2;
      const place = above ? {x: 0, y: top + 14} : {x: left - 6, y: middle + 4, 'text-anchor': 'end'};
      inside.push(svg('text', {class: 'name', ...place}, row.name),
        svg('line', {class: 'rule', x1: left, x2: width - 8, y1: top + heights[i], y2: top + heights[i]}));
      row.dots.forEach((dot, place) => {
        const y = middle + (place - (row.dots.length - 1) / 2) * spread;
        inside.push(svg('g', {}, svg('title', {}, `${dot.label}: ${format(dot.value)}`),
          known(dot.low) ? svg('line', {class: 'interval', x1: x(dot.low), x2: x(dot.high), y1: y, y2: y, css: {stroke: color(dot.run)}}) : null,
          mark(dot.run, x(dot.value), y, 4.6)));
      });
      top += heights[i];
    });
    picture.setAttribute('viewBox', `0 0 ${width} ${height}`);
    picture.setAttribute('width', width);
    picture.setAttribute('height', height);
    picture.replaceChildren(
      ...marks.places.map((value) => svg('g', {class: 'tick'},
        svg('line', {x1: x(value), x2: x(value), y1: 4, y2: height - 30}),
        svg('text', {x: x(value), y: height - 14, 'text-anchor': 'middle'}, axis && axis.format ? axis.format(value) : compact(value, marks.digits)))),
      ...inside);
  }
  new ResizeObserver(draw).observe(holder);
  return html('figure', {class: 'chart dots'}, html('figcaption', {}, title), holder);
}
