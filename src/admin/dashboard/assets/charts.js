// Draws each chart from the table that holds its figures, so both always say the same.
(() => {
  const locale = document.documentElement.lang;
  const number = (options) => new Intl.NumberFormat(locale, options);
  const whole = number({ maximumFractionDigits: 0 });
  const compact = number({ notation: 'compact', maximumSignificantDigits: 3 });
  const money = (value) => number({ style: 'currency', currency: 'USD', currencyDisplay: 'narrowSymbol',
    ...(value >= 100 ? { maximumFractionDigits: 0 } : { minimumSignificantDigits: 1, maximumSignificantDigits: 3 }) }).format(value);
  const three = number({ maximumSignificantDigits: 3 });
  const duration = (us) => us >= 60e6 ? `${three.format(us / 60e6)} min` : us >= 1e6 ? `${three.format(us / 1e6)} s`
    : us >= 1e3 ? `${three.format(us / 1e3)} ms` : `${whole.format(us)} µs`;
  const UNITS = {
    count: { tick: (v) => compact.format(v), full: (v) => whole.format(v), whole: true },
    money: { tick: (v) => money(v / 1e9), full: (v) => money(v / 1e9) },
    duration: { tick: duration, full: duration },
  };
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  const points = (id) => {
    const table = document.getElementById(id);
    if (!table) return null;
    const names = [...table.tHead.rows[0].cells].map((cell) => cell.dataset.name);
    const columns = Object.fromEntries(names.map((name) => [name, []]));
    for (const row of table.tBodies[0].rows) {
      [...row.cells].forEach((cell, at) => columns[names[at]].push(cell.dataset.v === '' ? null : Number(cell.dataset.v)));
    }
    const head = (name) => table.tHead.querySelector(`[data-name="${name}"]`).textContent.trim();
    return { columns, head, width: Number(table.dataset.width) };
  };

  // Days are those of UTC, wherever somebody looks from.
  const is_daily = (width) => width >= 86_400;
  const when = (seconds, width) => {
    const options = width < 60 ? { timeStyle: 'medium' } : is_daily(width) ? { dateStyle: 'medium', timeZone: 'UTC' } : { dateStyle: 'medium', timeStyle: 'short' };
    return new Intl.DateTimeFormat(locale, { ...options, hour12: false }).format(seconds * 1000);
  };
  const tick = (splits, span, width) => splits.map((seconds) => {
    const options = is_daily(width) ? { day: 'numeric', month: 'short', timeZone: 'UTC' }
      : span > 2 * 86_400 ? { day: 'numeric', month: 'short' }
      : { hour: '2-digit', minute: '2-digit', ...(width < 60 && span < 300 ? { second: '2-digit' } : {}) };
    return new Intl.DateTimeFormat(locale, { ...options, hour12: false }).format(seconds * 1000);
  });

  // The top of each stacked series; the first one stands on the ground.
  const stack = (series) => {
    const sums = series[0].map(() => 0);
    return series.map((values) => values.map((value, at) => (sums[at] += value ?? 0)));
  };

  const tooltip = (holder, series, unit, data) => {
    const tip = document.createElement('div');
    tip.className = 'tip';
    tip.hidden = true;
    holder.append(tip);
    return (plot) => {
      const at = plot.cursor.idx;
      tip.hidden = at == null || plot.cursor.left < 0;
      if (tip.hidden) return;
      const title = document.createElement('b');
      title.textContent = when(data.columns.time[at] / 1000, data.width);
      const lines = series.map(({ name, ink }) => {
        const line = document.createElement('span');
        line.className = `key ${ink}`;
        const value = data.columns[name][at];
        line.textContent = `${data.head(name)} ${value == null ? '–' : unit.full(value)}`;
        return line;
      });
      tip.replaceChildren(title, ...lines);
      const left = plot.cursor.left + plot.bbox.left / devicePixelRatio;
      const flip = left + tip.offsetWidth + 20 > holder.clientWidth;
      tip.style.transform = `translate(${Math.round(flip ? left - tip.offsetWidth - 12 : left + 12)}px, 4px)`;
    };
  };

  const draw = (holder, data) => {
    const unit = UNITS[holder.dataset.unit];
    const series = holder.dataset.series.split(' ').map((text) => {
      const [name, ink] = text.split(':');
      return { name, ink };
    });
    const stacked = holder.dataset.form === 'bars';
    const values = series.map(({ name }) => data.columns[name]);
    const shown = stacked ? stack(values) : values;
    const xs = data.columns.time.map((ms) => ms / 1000);
    const span = xs.at(-1) - xs[0] + data.width;
    const axis = { stroke: colour('text-faint'), font: '11px Inter, sans-serif', grid: { stroke: colour('grid'), width: 1 }, ticks: { show: false } };
    const bars = uPlot.paths.bars({ size: [0.72, 22], radius: 0.15, align: 1 });
    const plot = new uPlot({
      width: holder.clientWidth,
      height: holder.clientHeight,
      padding: [8, is_daily(data.width) ? 28 : 16, 0, 0],
      cursor: { drag: { setScale: false }, y: false, points: { show: !stacked, size: 6 }, sync: { key: holder.dataset.points ?? 'time' } },
      ...(is_daily(data.width) ? { tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), 'Etc/UTC') } : {}),
      legend: { show: false },
      scales: {
        x: { range: () => [xs[0], xs.at(-1) + (stacked ? data.width : is_daily(data.width) ? 0 : data.width / 2)] },
        y: { range: (_, __, max) => [0, !max ? 1 : uPlot.rangeNum(0, max, { min: { pad: 0, soft: 0, mode: 1 }, max: { pad: 0.12, soft: 0, mode: 1 } })[1]] },
      },
      axes: [
        { ...axis, size: 22, gap: 4, grid: { show: false }, space: 70, incrs: is_daily(data.width) ? [1, 2, 7, 14, 28, 91].map((days) => days * 86_400) : undefined, values: (_, splits) => tick(splits, span, data.width) },
        { ...axis, size: 54, gap: 6, space: 30, incrs: unit.whole ? [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6, 2e6, 5e6, 1e7, 2e7, 5e7, 1e8, 5e8, 1e9] : undefined,
          values: (_, splits) => splits.map((value) => value === 0 ? '0' : unit.tick(value)) },
      ],
      // Of stacked bars the tallest is drawn first, so that those before it stand in front.
      series: [{}, ...(stacked ? [...series].reverse() : series).map(({ ink }) => ({
        stroke: colour(ink),
        width: stacked ? 0 : 1.6,
        fill: stacked ? colour(ink) : undefined,
        paths: stacked ? bars : undefined,
        points: { show: !stacked && xs.length < 3, size: 5 },
        spanGaps: false,
      }))],
      hooks: { setCursor: [tooltip(holder, series, unit, data)] },
    }, [xs, ...(stacked ? [...shown].reverse() : shown)], holder);
    return plot;
  };

  let plots = [];
  const draw_all = () => {
    for (const plot of plots) plot.destroy();
    for (const tip of document.querySelectorAll('.chart .tip')) tip.remove();
    plots = [];
    for (const holder of document.querySelectorAll('[data-series]')) {
      const data = points(holder.dataset.points ?? 'points');
      const has_points = Boolean(data?.columns.time.length);
      // One that waits for its first figures takes no room.
      if (holder.dataset.points) holder.hidden = !has_points;
      if (has_points) plots.push(draw(holder, data));
    }
  };
  let resizing;
  addEventListener('resize', () => { clearTimeout(resizing); resizing = setTimeout(draw_all, 120); });
  document.addEventListener('themechange', draw_all);
  document.addEventListener('refreshed', () => { if (!document.querySelector('.chart:hover')) draw_all(); });
  document.fonts.ready.then(draw_all);
})();
