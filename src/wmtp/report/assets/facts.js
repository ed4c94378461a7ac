// Where the runs came from, and what the page does not show.

const quoted = (word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : "'" + word.replaceAll("'", "'\\''") + "'");

function facts({runs}) {
  const lines = runs.map((run) => new Set((run.config || '').split('\n')));
  return section('facts', 'Run facts', 'A run is repeated by its own config. Lines of a config that are not in every run’s are marked.',
    runs.map((run, i) => html('article', {class: 'facts'}, html('h3', {}, swatch(i), run.label),
      run.notes.length ? html('ul', {class: 'notes'}, run.notes.map((note) => html('li', {}, note))) : null,
      factList(run),
      run.config === null ? null : html('details', {class: 'figures'}, html('summary', {}, 'config.yaml'), html('pre', {class: 'config', tabindex: '0'},
        run.config.split('\n').map((line) => [lines.every((other) => other.has(line)) ? line : html('mark', {}, line), '\n']))))));
}

function factList(run) {
  const of = run.facts || {};
  const versions = Object.entries(of.versions || {}).filter(([, version]) => version).map(([name, version]) => `${name} ${version}`).join(', ');
  const machine = of.machine ? [of.machine.system, of.machine.processor, known(of.machine.cores) ? counted(of.machine.cores, 'core') : null].filter(Boolean).join(', ') : null;
  const commit = of.git ? `${of.git.commit}${of.git.clean ? '' : ', with changes that were not committed'}` : null;
  const told = [['folder', run.folder], ['started', of.started && (of.starts > 1 ? `${of.started} (start ${of.starts})` : of.started)],
    ['command', of.argv && of.argv.map(quoted).join(' ')],
    ['repeat it', run.config === null ? null : `wmtp train --config ${quoted(run.folder + '/config.yaml')} --out NEW_FOLDER`],
    ['seed', known(of.seed) ? String(of.seed) : null], ['data', of.data], ['tokenizer', of.tokenizer], ['commit', commit],
    ['device', of.device && `${of.device}${known(of.num_threads) ? `, ${counted(of.num_threads, 'thread')}` : ''}`], ['machine', machine], ['versions', versions || null],
    ...(run.saved ? [['saved', run.saved]] : [])];
  const code = new Set(['folder', 'command', 'repeat it', 'data', 'tokenizer', 'commit']);
  return html('dl', {}, told.flatMap(([name, value]) => [html('dt', {}, name),
    html('dd', {}, value ? (code.has(name) ? html('code', {}, value) : value) : 'not known')]));
}

function limits({runs}) {
  const seeds = new Set(runs.map((run) => run.facts && run.facts.seed).filter(known));
  const missing = [];
  if (!runs.some((run) => run.evaluations.benchmarks.length)) missing.push('whether programs pass their tests (wmtp eval --benchmark)');
  if (!runs.some((run) => run.evaluations.speed)) missing.push('how fast decoding is (wmtp eval --suite speed)');
  if (!runs.some((run) => run.tokens)) missing.push('single tokens (wmtp inspect)');
  return section('limits', 'Not shown here', null, html('p', {},
    `It shows ${counted(runs.length, 'run')} and ${counted(seeds.size, 'seed')}. `,
    'Which arm is better takes several seeds, the controls, and a statistic over them; figures of single runs, however many digits they have, do not answer it.',
    missing.length ? ` Not measured for these runs: ${missing.join('; ')}.` : ''));
}
