// Puts the page together.

const data = JSON.parse(document.getElementById('data').textContent);

function themeSwitch() {
  const root = document.documentElement;
  return choice('Theme', [{value: 'auto', text: 'auto'}, {value: 'light', text: 'light'}, {value: 'dark', text: 'dark'}], 'auto', (value) => {
    if (value === 'auto') delete root.dataset.theme;
    else root.dataset.theme = value;
  });
}

const main = document.getElementById('main');
const names = data.runs.map((run) => run.label);
const about = data.studies.length ? data.studies.map((study) => study.study) : names;
document.title = `${about.join(', ')} · WMTP report`;
document.getElementById('title').textContent = about.length > 4 ? `${about.length} ${data.studies.length ? 'studies' : 'runs'}` : about.join('\u00a0· ');
const started = data.runs.map((run) => run.facts && run.facts.started).filter(Boolean).sort();
const days = [...new Set([started[0], started[started.length - 1]].filter(Boolean).map((text) => text.slice(0, 10)))];
document.getElementById('subtitle').textContent =
  [about !== names || names.length > 4 ? names.join(', ') : null, days.join(' to ') || null, `wmtp ${data.version}`].filter(Boolean).join(' · ');

const PARTS = {study: studies, glance: atAGlance, curves, weights, values, evaluation: evaluations, tokens, facts, limits};

// A file may be other than it should be in ways that only show here: then its section says so, and the others stand.
function drawn([name, part]) {
  try {
    return part(data);
  } catch (problem) {
    return section(name, `Not drawn: ${name}`, null, html('p', {class: 'note'}, `The data of this section is not as expected (${problem.message}).`));
  }
}

const sections = Object.entries(PARTS).map(drawn).filter(Boolean);
const broken = data.runs.flatMap((run) => run.notes.map((note) => `${run.label}: ${note}`));
if (broken.length) main.append(html('aside', {class: 'note', 'aria-label': 'Notes'}, html('p', {}, 'Not everything is there:'), html('ul', {}, broken.map((note) => html('li', {}, note)))));
main.append(...sections);
const links = sections.map((part) => html('a', {href: '#' + part.id}, part.querySelector('h2').textContent));
document.querySelector('#contents .links').append(...links);
document.getElementById('theme').append(themeSwitch());

// The section that crosses a line near the top of the screen is the one that is read: its link is marked.
const reading = new IntersectionObserver((entries) => {
  for (const {target, isIntersecting} of entries) links[sections.indexOf(target)].setAttribute('aria-current', isIntersecting);
}, {rootMargin: '-20% 0px -79% 0px'});
sections.forEach((part) => reading.observe(part));
