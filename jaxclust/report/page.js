'use strict';

(() => {
  const root = document.documentElement;
  const at = id => document.getElementById(id);

  function darken(is) {
    root.classList.toggle('dark', is);
    at('dark').setAttribute('aria-pressed', is);
  }
  darken(matchMedia('(prefers-color-scheme: dark)').matches);
  at('dark').addEventListener('click', () =>
    darken(!root.classList.contains('dark')));

  const inputs = [...document.querySelectorAll('.name')];
  const nameOf = cluster => inputs[cluster]?.value || String(cluster);

  function download(name, kind, text) {
    const link = document.createElement('a');
    link.href = URL.createObjectURL(new Blob([text], { type: kind }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  at('save-names')?.addEventListener('click', () => {
    const named = inputs.filter(i => i.value && i.value !== i.dataset.cluster);
    const names = Object.fromEntries(
      named.map(i => [i.dataset.cluster, i.value]));
    download('names.json', 'application/json', JSON.stringify(names, null, 2));
  });

  const held = at('map-data');
  if (!held) return;
  const data = JSON.parse(held.textContent);
  const bytes = Uint8Array.from(
    atob(data.sheet.split(',')[1]), c => c.charCodeAt(0));
  const sheet = URL.createObjectURL(new Blob([bytes], { type: 'image/webp' }));
  root.style.setProperty('--sheet', `url(${sheet})`);
  const shown = { color: 'cluster', hidden: new Set() };
  const listed = 300; // most images of a selection that are shown

  function picture(element, source, i, zoom) {
    const scale = zoom / data.zoom;
    const [left, top] = [source.data.left[i], source.data.top[i]];
    const all = data.width * zoom * data.columns;
    element.style.width = `${data.width * zoom}px`;
    element.style.height = `${data.height * zoom}px`;
    element.style.background = `var(--sheet) ${-left * scale}px ` +
      `${-top * scale}px / ${all}px auto`;
  }

  function fileOf(source, i) {
    return data.files.length ? data.files[i] :
      `${data.split}/${source.data.row[i]}`;
  }

  function nameIn(group, source, i) {
    const number = source.data[group][i];
    return group === 'cluster' ? nameOf(number) : data.names[group][number];
  }

  function describe(source, i) {
    const groups = Object.keys(data.names).map(
      group => `${group} ${nameIn(group, source, i)}`);
    const values = data.values.map(
      name => `${name} ${source.data[name][i].toPrecision(3)}`);
    return [fileOf(source, i), ...groups, ...values].join(', ');
  }

  function quoted(value) {
    let text = String(value);
    if (/^[=+\-@\t\r]/.test(text) && isNaN(text)) text = `./${text}`;
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  }

  function play(source, shownOnes, pictured, plot) {
    const total = source.data.row.length;
    const rows = [...Array(total).keys()];

    function drawLegend() {
      const group = shown.color;
      at('legend').replaceChildren(...data.names[group].map((name, number) => {
        const label = document.createElement('label');
        const box = document.createElement('input');
        const dot = document.createElement('i');
        box.type = 'checkbox';
        box.checked = !shown.hidden.has(number);
        box.addEventListener('change', () => {
          shown.hidden[box.checked ? 'delete' : 'add'](number);
          sift();
        });
        dot.style.background = data.colors[number % data.colors.length];
        const text = group === 'cluster' ? nameOf(number) : name;
        label.append(box, ' ', dot, text);
        return label;
      }));
    }

    function sift() {
      const [least, most] = [at('least').value, at('most').value].map(Number);
      const words = at('search').value.toLowerCase();
      const group = source.data[shown.color];
      const sure = source.data.confidence;
      const kept = rows.map(i => !shown.hidden.has(group[i]) &&
        sure[i] >= least - 1e-6 && sure[i] <= most + 1e-6 &&
        (!words || fileOf(source, i).toLowerCase().includes(words)));
      shownOnes.booleans = kept;
      pictured.booleans = kept.map((is, i) => is && source.data.pictured[i] > 0);
      const count = kept.filter(Boolean).length;
      at('count').textContent =
        `${count.toLocaleString('en')} of ${total.toLocaleString('en')} shown`;
    }

    function chosen() {
      const [, sign, name] = at('order').value.match(/(-?)(.*)/);
      const values = source.data[name];
      const factor = sign ? -1 : 1;
      return [...source.selected.indices].sort(
        (i, j) => factor * (values[i] - values[j]));
    }

    function enlarge(i) {
      const box = at('zoom');
      picture(box.firstElementChild, source, i, 3 * data.zoom);
      box.children[1].textContent = describe(source, i);
      box.showModal();
    }

    function list() {
      const found = chosen();
      at('chosen').hidden = !found.length;
      const seen = found.filter(i => source.data.pictured[i]).slice(0, listed);
      const more = seen.length < found.length ? `, ${seen.length} here` : '';
      at('number').textContent =
        `${found.length.toLocaleString('en')} selected${more}`;
      at('thumbs').replaceChildren(...seen.map(i => {
        const thumb = document.createElement('button');
        thumb.type = 'button';
        thumb.title = describe(source, i);
        thumb.setAttribute('aria-label', thumb.title);
        picture(thumb, source, i, Math.max(1, Math.round(data.zoom / 2)));
        thumb.addEventListener('click', () => enlarge(i));
        return thumb;
      }));
    }

    function save() {
      const groups = Object.keys(data.names);
      const head = ['file', ...groups.flatMap(
        g => g === 'cluster' ? [g, 'name'] : [g]), ...data.values];
      const lines = chosen().map(i => [
        fileOf(source, i),
        ...groups.flatMap(g => g === 'cluster' ?
          [source.data[g][i], nameIn(g, source, i)] :
          [nameIn(g, source, i)]),
        ...data.values.map(name => source.data[name][i]),
      ]);
      const text = [head, ...lines].map(
        line => line.map(quoted).join(',')).join('\n');
      download('selection.csv', 'text/csv', `${text}\n`);
    }

    document.querySelectorAll('.choice input').forEach(input =>
      input.addEventListener('change', () => {
        if (input.name === 'color') {
          shown.color = input.value;
          shown.hidden.clear();
          source.data.group = source.data[input.value];
        } else {
          source.data.x = source.data[`${input.value}_x`];
          source.data.y = source.data[`${input.value}_y`];
        }
        source.change.emit();
        plot.reset.emit();
        drawLegend();
        sift();
      }));
    for (const id of ['least', 'most', 'search']) {
      at(id).addEventListener('input', sift);
    }
    at('order').addEventListener('change', list);
    at('save').addEventListener('click', save);
    at('clear').addEventListener('click', () => {
      source.selected.indices = [];
    });
    source.selected.properties.indices.change.connect(list);
    inputs.forEach(input => input.addEventListener('change', drawLegend));
    document.querySelectorAll('.members').forEach(button =>
      button.addEventListener('click', () => {
        const cluster = Number(button.dataset.cluster);
        source.selected.indices = rows.filter(
          i => source.data.cluster[i] === cluster);
        at('chosen').scrollIntoView({ block: 'center' });
        at('save').focus({ preventScroll: true });
      }));
    drawLegend();
    sift();
  }

  Bokeh.embed.embed_item(data.item).then(() => {
    const model = name => Bokeh.documents.at(-1).get_model_by_name(name);
    play(...['images', 'shown', 'pictured', 'plot'].map(model));
    root.dataset.ready = 'yes';
  });
})();
