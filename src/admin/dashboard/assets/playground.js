// Sends a chat through the gateway and shows the reply as it streams in, with what it used.
(() => {
  const form = document.getElementById('play');
  if (!form) return;
  const words = document.getElementById('words').dataset;
  const [send, stop, reply, state, headers] = ['send', 'stop', 'reply', 'state', 'headers'].map((id) => document.getElementById(id));
  const locale = document.documentElement.lang;
  const number = new Intl.NumberFormat(locale);
  const money = new Intl.NumberFormat(locale, { style: 'currency', currency: 'USD', currencyDisplay: 'narrowSymbol', minimumFractionDigits: 6, maximumFractionDigits: 6 });
  const milliseconds = (ms) => ms < 1000 ? `${Math.round(ms)} ms` : `${new Intl.NumberFormat(locale, { maximumFractionDigits: 2 }).format(ms / 1000)} s`;
  const fact = (name, text) => { document.querySelector(`[data-fact="${name}"]`).textContent = text; };
  const say = (text, kind) => { state.textContent = text; state.className = `badge ${kind ?? ''}`; };
  const csrf = document.querySelector('meta[name="csrf"]')?.content;
  let aborter = null;

  const request = () => {
    const fields = new FormData(form);
    const messages = [{ role: 'user', content: fields.get('prompt') }];
    if (fields.get('system').trim()) messages.unshift({ role: 'system', content: fields.get('system') });
    return {
      key: fields.get('key').trim(),
      body: { model: fields.get('model').trim(), user: fields.get('user').trim() || undefined, max_tokens: Number(fields.get('max')) || undefined,
        stream: true, stream_options: { include_usage: true }, messages },
    };
  };

  const show_headers = (response) => {
    headers.replaceChildren();
    for (const name of ['model', 'version', 'variant', 'prompt', 'call']) {
      const value = response.headers.get(`x-tollgate-${name}`);
      if (!value) continue;
      const term = document.createElement('dt');
      term.textContent = words[name];
      const told = document.createElement('dd');
      if (name === 'call') {
        const link = document.createElement('a');
        link.href = `/calls/${value}${new URL(location.href).searchParams.has('lang') ? `?lang=${locale}` : ''}`;
        link.className = 'mono';
        link.textContent = value;
        told.append(link);
      } else told.textContent = value;
      headers.append(term, told);
    }
  };

  // The data of each event of a stream, whatever pieces it comes in.
  async function* events(body) {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = '';
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) if (line.startsWith('data:')) yield line.slice(5).trim();
    }
  }

  // What a call cost is known once it is settled, just after its reply has ended.
  const cost = async (id) => {
    for (let round = 0; round < 8; round += 1) {
      await new Promise((later) => setTimeout(later, 250));
      const response = await fetch(`/calls/${id}`, { headers: { 'accept-language': 'en' } });
      if (!response.ok) continue;
      const page = new DOMParser().parseFromString(await response.text(), 'text/html');
      const nano = page.querySelector('[data-cost]')?.dataset.cost;
      if (nano) return money.format(Number(nano) / 1e9);
    }
    return '–';
  };

  const play = async () => {
    const { key, body } = request();
    aborter = new AbortController();
    [send.disabled, stop.disabled] = [true, false];
    reply.textContent = '';
    for (const name of ['input', 'output', 'cost', 'first', 'duration']) fact(name, '–');
    headers.replaceChildren();
    say(words.sending);
    const began = performance.now();
    let id = null;
    try {
      const response = await fetch('/playground/send', {
        method: 'POST', signal: aborter.signal, body: JSON.stringify(body),
        headers: { 'content-type': 'application/json', ...(csrf ? { 'x-tollgate-csrf': csrf } : {}), ...(key ? { 'x-playground-key': `Bearer ${key}` } : {}) },
      });
      show_headers(response);
      id = response.headers.get('x-tollgate-call');
      if (!response.ok) {
        const told = await response.json().catch(() => null);
        reply.textContent = told?.error?.message ?? told?.detail ?? response.statusText;
        say(`${response.status} ${told?.error?.code ?? ''}`, 'bad');
        return;
      }
      say(words.streaming, 'mark');
      let first = null;
      for await (const data of events(response.body)) {
        if (data === '[DONE]') break;
        const event = JSON.parse(data);
        if (event.error) throw new Error(event.error.message);
        const text = event.choices?.[0]?.delta?.content;
        if (text) {
          first ??= performance.now() - began;
          reply.append(text);
          fact('first', milliseconds(first));
        }
        if (event.usage) {
          fact('input', number.format(event.usage.prompt_tokens));
          fact('output', number.format(event.usage.completion_tokens));
        }
      }
      fact('duration', milliseconds(performance.now() - began));
      say(words.done, 'good');
    } catch (error) {
      if (error.name === 'AbortError') say(words.stopped);
      else {
        reply.append(`\n${error.message}`);
        say(words.failed, 'bad');
      }
    } finally {
      [send.disabled, stop.disabled] = [false, true];
    }
    if (id) fact('cost', await cost(id));
  };

  form.addEventListener('submit', (event) => { event.preventDefault(); play(); });
  form.addEventListener('keydown', (event) => { if (event.key === 'Enter' && event.ctrlKey && !send.disabled) form.requestSubmit(); });
  stop.addEventListener('click', () => aborter?.abort());
})();
