// Keeps figures live: fetches the page again every few seconds and puts in what has changed. Rests while nobody looks.
(() => {
  const button = document.getElementById('live');
  if (!button) return;
  const every = Number(button.dataset.every) * 1000;
  const spoken = document.getElementById('spoken');
  let on = true;
  let under_way = false;
  let spoken_at = Date.now();

  const put_in = (fresh) => {
    for (const part of document.querySelectorAll('[data-live]')) {
      const next = fresh.getElementById(part.id);
      // What somebody is in stays as it is: focus must not be lost.
      const in_use = part.contains(document.activeElement) && part.contains(document.querySelector(':focus-visible'));
      if (!next || in_use || next.innerHTML === part.innerHTML) continue;
      part.replaceChildren(...document.adoptNode(next).childNodes);
    }
    document.dispatchEvent(new Event('refreshed'));
  };

  const speak = (fresh) => {
    const words = fresh.getElementById('spoken')?.textContent;
    // Once a minute is enough to hear.
    if (!spoken || !words || Date.now() - spoken_at < 60_000) return;
    spoken.textContent = words;
    spoken_at = Date.now();
  };

  const refresh = async () => {
    if (!on || document.hidden || under_way) return;
    under_way = true;
    try {
      const response = await fetch(location.href, { headers: { accept: 'text/html' } });
      if (response.ok && !response.redirected) {
        const fresh = new DOMParser().parseFromString(await response.text(), 'text/html');
        put_in(fresh);
        speak(fresh);
      }
      button.dataset.state = response.ok ? 'live' : 'stale';
    } catch {
      button.dataset.state = 'stale';
    } finally {
      under_way = false;
    }
    button.title = button.dataset.state === 'stale' ? button.dataset.staleWords : '';
  };

  button.hidden = false;
  button.addEventListener('click', () => {
    on = !on;
    button.setAttribute('aria-pressed', String(on));
    refresh();
  });
  document.addEventListener('visibilitychange', refresh);
  setInterval(refresh, every);
})();
