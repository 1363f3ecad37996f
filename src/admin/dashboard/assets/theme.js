// Before the page is drawn: the theme that was chosen, or else the system's.
(() => {
  const root = document.documentElement;
  const dark = matchMedia('(prefers-color-scheme: dark)');
  const chosen = () => { try { return localStorage.getItem('theme') ?? 'auto'; } catch { return 'auto'; } };
  const apply = () => {
    const theme = chosen();
    root.dataset.theme = theme === 'auto' ? (dark.matches ? 'dark' : 'light') : theme;
    document.dispatchEvent(new Event('themechange'));
  };
  dark.addEventListener('change', apply);
  apply();
  addEventListener('DOMContentLoaded', () => {
    const select = document.getElementById('theme');
    if (!select) return;
    select.value = chosen();
    select.addEventListener('change', () => {
      try { localStorage.setItem('theme', select.value); } catch { /* then it holds for this page */ }
      apply();
    });
  });
})();
