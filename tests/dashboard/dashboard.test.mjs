// The dashboard in a real browser: each page, in both languages, light and dark; what it may not do; what people can do with it.

import assert from 'node:assert/strict';
import { mkdirSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { ROOT, openPage, startBrowser, startDemo, startServe } from './demo.mjs';
import { startProvider } from './provider.mjs';

const SCREENSHOTS = join(ROOT, 'target/screenshots');
const AXE = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
const FULL_AFTER_MS = 30_000;
const PAGES = {
  overview: { path: '/', en: 'Overview', de: 'Übersicht' },
  calls: { path: '/calls', en: 'Calls', de: 'Aufrufe' },
  call: { path: null, en: 'Call', de: 'Aufruf' },
  budgets: { path: '/budgets', en: 'Budgets', de: 'Budgets' },
  costs: { path: '/costs', en: 'Costs', de: 'Kosten' },
  experiments: { path: '/experiments', en: 'Experiments', de: 'Experimente' },
  models: { path: '/models', en: 'Models', de: 'Modelle' },
  prompts: { path: '/prompts', en: 'Prompts', de: 'Prompts' },
  'what-if': { path: '/costs?instead_of=support&model=cheap', en: 'Costs', de: 'Kosten' },
  'models-compare': { path: '/models/compare?name=support&from=v2&to=v1', en: 'Versions of support', de: 'Versionen von support' },
  'prompts-compare': { path: '/prompts/compare?name=helpdesk&from=v1&to=v2', en: 'Versions of helpdesk', de: 'Versionen von helpdesk' },
  configuration: { path: '/configuration', en: 'Configuration', de: 'Konfiguration' },
  audit: { path: '/audit', en: 'Audit', de: 'Audit' },
  playground: { path: '/playground', en: 'Playground', de: 'Labor' },
};

let demo;
let browser;
let call;

before(async () => {
  mkdirSync(SCREENSHOTS, { recursive: true });
  [demo, browser] = [await startDemo(), await startBrowser()];
  const page = await openPage(browser, demo);
  // What the demonstration promises: something of everything within half a minute.
  const full = Date.now() + FULL_AFTER_MS;
  const shows = async (path, selector) => {
    while (Date.now() < full) {
      await page.look(path);
      if (await page.locator(selector).count()) return;
      await page.waitForTimeout(500);
    }
    assert.fail(`${path} shows no ${selector} within ${FULL_AFTER_MS} ms`);
  };
  await shows('/calls?errors=on', '#calls tbody tr');
  await shows('/calls?outcome=refused', '#calls tbody tr');
  await shows('/calls?variant=tone%3Dwarm', '#calls tbody tr');
  await shows('/?by=team', '#by tbody tr:nth-child(3)');
  await shows('/budgets', '[id^=rows] tbody tr');
  await shows('/experiments', '#units-1 tbody tr');
  await shows('/models/compare?name=support&from=v2&to=v1', '#figures tbody tr');
  await shows('/prompts/compare?name=helpdesk&from=v1&to=v2', '#figures tbody tr');
  await shows('/calls?model=support&outcome=ok', '#calls tbody tr');
  // An entry for the audit log.
  const credit = { amount_nanousd: 1000, reason: 'a goodwill gesture' };
  const credited = await page.request.post(new URL('/api/budgets/trial/credit', demo.url).href, { data: credit, headers: { 'idempotency-key': 'test' } });
  assert.equal(credited.status(), 200, await credited.text());
  call = await page.locator('#calls tbody a.mono').first().getAttribute('href');
  await page.context().close();
});

after(async () => {
  await browser?.close();
  await demo?.stop();
});

/** Whether axe finds nothing serious. */
async function keepsNobodyOut(page, name) {
  // Through the debugger, which no content security policy holds back.
  await page.evaluate(AXE);
  const { violations, passes } = await page.evaluate(() => globalThis.axe.run());
  assert.ok(passes.length > 10, `${name} was looked at`);
  const serious = violations.filter(({ impact }) => impact === 'serious' || impact === 'critical');
  const told = serious.map(({ id, help, nodes }) => `${id}: ${help}\n  ${nodes.map((node) => node.html.slice(0, 200)).join('\n  ')}`);
  assert.deepEqual(told, [], name);
}

for (const language of ['en', 'de']) {
  for (const theme of ['light', 'dark']) {
    test(`each page is whole in ${language}, ${theme}`, async () => {
      const page = await openPage(browser, demo, { theme, language });
      for (const [name, { path, ...titles }] of Object.entries(PAGES)) {
        const response = await page.look(path ?? call);
        assert.equal(response.status(), 200, name);
        assert.equal((await page.locator('h1').textContent()).trim(), titles[language], name);
        assert.equal(await page.locator('html').getAttribute('lang'), language);
        assert.equal(await page.locator('html').getAttribute('data-theme'), theme);
        if (['overview', 'experiments'].includes(name)) await page.waitForSelector('.chart canvas');
        const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
        assert.ok(wide <= 0, `${name} is ${wide} pixels too wide`);
        await page.screenshot({ path: join(SCREENSHOTS, `${name}-${theme}-${language}.png`), fullPage: true });
        assert.deepEqual(page.wrongs, [], name);
      }
      await page.context().close();
    });

    test(`nobody is kept out of a page in ${language}, ${theme}`, async () => {
      const page = await openPage(browser, demo, { theme, language });
      for (const [name, { path }] of Object.entries(PAGES)) {
        await page.look(path ?? call);
        await keepsNobodyOut(page, name);
      }
      await page.context().close();
    });
  }
}

test('a page is confined to its own origin and never framed', async () => {
  const page = await openPage(browser, demo);
  for (const { path } of Object.values(PAGES)) {
    const headers = (await page.look(path ?? call)).headers();
    assert.match(headers['content-security-policy'], /default-src 'self'/);
    assert.match(headers['content-security-policy'], /frame-ancestors 'none'/);
    assert.equal(headers['x-content-type-options'], 'nosniff');
    const inline = await page.locator('script:not([src]), style, [style]:not(.chart *), [onclick]').count();
    assert.equal(inline, 0, `${path} has something inline`);
  }
  await page.context().close();
});

test('everything is reached with the keyboard', async () => {
  const page = await openPage(browser, demo);
  await page.look('/');
  const focused = () => page.evaluate(() => document.activeElement.textContent.trim() || document.activeElement.id);
  await page.keyboard.press('Tab');
  assert.equal(await focused(), 'Skip to the content');
  await page.keyboard.press('Enter');
  assert.equal(await page.evaluate(() => document.activeElement.id), 'main');
  const seen = [];
  await page.look('/');
  for (let presses = 0; presses < 50; presses += 1) {
    await page.keyboard.press('Tab');
    seen.push(await focused());
    const outlined = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle !== 'none' || document.activeElement === document.body);
    assert.ok(outlined, `no focus ring on ${seen.at(-1)}`);
  }
  for (const name of ['Calls', 'Budgets', 'Playground', 'Deutsch', 'Live', '24 hours', 'Team', 'The figures behind the charts']) {
    assert.ok(seen.includes(name), `${name} is not reached: ${seen.join(', ')}`);
  }
  await page.context().close();
});

test('language and theme are chosen and kept', async () => {
  const page = await openPage(browser, demo);
  await page.look('/calls');
  await page.click('text=Deutsch');
  assert.equal(await page.locator('h1').textContent(), 'Aufrufe');
  await page.click('nav >> text=Budgets');
  assert.equal(await page.locator('html').getAttribute('lang'), 'de');
  await page.selectOption('#theme', 'dark');
  await page.click('nav >> text=Modelle');
  assert.equal(await page.locator('html').getAttribute('data-theme'), 'dark');
  await page.context().close();
});

test('figures are live until they are held', async () => {
  const page = await openPage(browser, demo);
  await page.look('/calls');
  const first = () => page.locator('#calls tbody a.mono').first().getAttribute('href');
  const then = await first();
  await page.waitForFunction((href) => document.querySelector('#calls tbody a.mono').getAttribute('href') !== href, then);
  await page.click('#live');
  assert.equal(await page.locator('#live').getAttribute('aria-pressed'), 'false');
  let asked = 0;
  page.on('request', () => { asked += 1; });
  await page.waitForTimeout(4000);
  assert.equal(asked, 0, 'a page that is held asks nothing');
  assert.deepEqual(page.wrongs, []);
  await page.context().close();
});

test('calls are filtered, turned over, and found by their id', async () => {
  const page = await openPage(browser, demo);
  await page.look('/calls');
  await page.selectOption('#f-model', 'cheap');
  await page.click('text=Apply');
  const models = await page.locator('#calls tbody tr td:nth-child(4)').allTextContents();
  assert.ok(models.length && models.every((model) => model.startsWith('cheap')), models.join());
  await page.look('/calls');
  const ids = () => page.locator('#calls tbody a.mono').evaluateAll((links) => links.map((link) => link.title));
  // Held, so that what is read is what the link leads on from.
  await page.click('#live');
  const newest = await ids();
  await page.look(`/calls?after=${newest.at(-1)}`);
  const older = await ids();
  assert.ok(older.length > 0 && older[0] < newest.at(-1), 'the next page is older');
  await page.look('/calls');
  await page.click('text=Older');
  assert.match(page.url(), /after=/);
  await page.fill('#id', newest[0]);
  await page.click('text=Apply');
  assert.equal(new URL(page.url()).pathname, `/calls/${newest[0]}`);
  await page.look('/calls?id=nonsense');
  assert.equal(await page.locator('text=That is no call').count(), 1);
  assert.equal((await page.goto(new URL('/calls/nonsense', demo.url).href)).status(), 404);
  await page.context().close();
});

test('what calls would have cost elsewhere is asked on the page', async () => {
  const page = await openPage(browser, demo);
  await page.look('/costs');
  await page.selectOption('#w-instead', 'support');
  await page.fill('#w-model', 'sim/small');
  await page.selectOption('#w-since', '24h');
  await page.click('#what-if button');
  assert.equal(new URL(page.url()).hash, '#what-if');
  assert.match(await page.locator('#what-if [role=status]').textContent(), /On sim\/small, \d+ calls would have cost \$/);
  const saved = await page.locator('#what-if tbody tr', { hasText: 'sim/large' }).locator('td').nth(3).textContent();
  assert.match(saved, /^−\$/, 'the small one is cheaper');
  assert.equal(await page.locator('#live').count(), 0, 'an answer stays as it is');
  await page.fill('#w-model', 'no-such-model');
  await page.keyboard.press('Enter');
  assert.match(await page.locator('#what-if [role=alert]').textContent(), /no-such-model/);
  await page.screenshot({ path: join(SCREENSHOTS, 'what-if-refused.png') });
  assert.deepEqual(page.wrongs, []);
  await page.context().close();
});

test('versions are chosen and stand side by side', async () => {
  const page = await openPage(browser, demo);
  await page.look('/models');
  const form = page.locator('#support form[action="/models/compare"]');
  await form.locator('select').first().selectOption('v1');
  await form.locator('select').last().selectOption('v2');
  await form.locator('button').click();
  assert.equal(await page.locator('h1').textContent(), 'Versions of support');
  assert.ok((await page.locator('.diff').allTextContents()).some((text) => text.includes('sim/large')));
  assert.match(await page.locator('#figures').textContent(), /cost_per_call/);
  await page.selectOption('#since', '24h');
  await page.click('text=Compare');
  assert.match(page.url(), /since=24h/);
  await page.look('/prompts');
  await page.click('text=What their calls did');
  assert.ok(await page.locator('.halves ins').count() > 0, 'what the second one says anew is marked');
  assert.deepEqual(page.wrongs, []);
  await page.context().close();
});

test('the units of an experiment are drawn from their table, by days of UTC', async () => {
  const context = await browser.newContext({ locale: 'en', timezoneId: 'America/Los_Angeles', viewport: { width: 1440, height: 900 } });
  const page = await context.newPage();
  await page.goto(new URL('/experiments', demo.url).href);
  await page.waitForSelector('.growth .chart canvas');
  await page.click('text=The figures behind the chart');
  const days = await page.locator('#units-1 tbody th').allTextContents();
  const head = await page.locator('#units-1 thead th').allTextContents();
  assert.deepEqual(head, ['Day (UTC)', 'control', 'warm']);
  const box = await page.locator('.growth .u-over').boundingBox();
  // In the right half the last day is the nearest.
  await page.mouse.move(box.x + box.width * 0.7, box.y + box.height / 2);
  const tip = await page.locator('.growth .tip').textContent();
  const last = new Date(`${days.at(-1)}T00:00:00Z`);
  const said = new Intl.DateTimeFormat('en', { dateStyle: 'medium', timeZone: 'UTC' }).format(last);
  assert.ok(tip.startsWith(said) && tip.includes('warm'), `${tip} is of ${said}`);
  await context.close();
});

test('a roll-out is led on and called off, and so is a plan, with a session of one who may', async (t) => {
  const gateway = await startServe(`records: none
data_dir: data
server: { listen: "127.0.0.1:0", admin: "127.0.0.1:0", admin_token: dashboard-test-0123456789 }
auth: none
providers: { sim: { kind: simulated } }
models: { support: { live: v1, versions: { v1: { target: sim/small }, v2: { target: sim/large }, v3: { target: sim/other } } } }
`);
  t.after(() => gateway.stop());
  const page = await openPage(browser, gateway);
  const deploy = async (data) => {
    const headers = { authorization: 'Bearer dashboard-test-0123456789' };
    const done = await page.request.post(new URL('/api/models/support/deploy', gateway.url).href, { data, headers });
    assert.equal(done.status(), 200, await done.text());
  };
  await page.goto(new URL('/models', gateway.url).href);
  await page.locator('#token').fill('dashboard-test-0123456789');
  await page.locator('form button').click();
  await page.waitForURL('**/models');
  // The browser has its thoughts about a token without a name.
  page.wrongs.length = 0;
  await deploy({ version: 'v2', rollout: { stages: ['10%', '50%', '100%'] }, reason: 'the larger one' });
  await deploy({ version: 'v3', at: '2999-01-31T08:00:00Z' });
  await page.look('/models');
  for (const theme of ['light', 'dark']) {
    await page.selectOption('#theme', theme);
    await page.screenshot({ path: join(SCREENSHOTS, `rollout-${theme}-en.png`), fullPage: true });
  }
  await keepsNobodyOut(page, 'a roll-out');
  await page.fill('#rollout-1', 'all is calm');
  await page.click('text=On to 50%');
  assert.equal(await page.locator('.stages [aria-current=step]').textContent(), '50%');
  await page.click('text=Abort the roll-out');
  assert.equal(await page.locator('.stages').count(), 0);
  assert.match(await page.locator('#support header').textContent(), /live v1/);
  await page.click('text=Call the plan off');
  assert.equal(await page.locator('text=is planned').count(), 0);
  await page.click('summary:has-text("Versions and history")');
  const history = await page.locator('.history tbody').textContent();
  for (const what of ['roll-out went on', 'roll-out aborted', 'plan called off']) assert.ok(history.includes(what), history);
  assert.deepEqual(page.wrongs, []);
  await page.context().close();
});

test('a report is set beside another one of its suite, and what only one passed is shown', async () => {
  const page = await openPage(browser, demo);
  const report = (started, answer, passed) => {
    const mean = { value: passed, low: 0.1, high: 0.9 };
    const scores = [{ scorer: 'exact', mean, cases: 2, passed: passed * 2, unscored: 0 }];
    const row = (id, value, text) => ({ case: id, candidate: 'v2', repeat: 0, answer: { text }, latency_ms: 120, cost_nanousd: 1000, scores: { exact: { value, pass: value === 1, reason: '' } } });
    const one = (id, question, value, text) => ({ id, question, expected: 'Within 14 days.', tags: [], rows: [row(id, value, text)] });
    return {
      format: 1, tollgate: '0.1.0', suite: 'support', fingerprint: 'f', started, finished: started, ended: 'complete', passed: passed === 1, repeat: 1, baseline: 'v2',
      scorers: [{ id: 'exact', unit: 'score', threshold: 1 }],
      candidates: [{ name: 'v2', model: 'support@v2', served: ['sim/large'], calls: 2, errors: 0, input_tokens: 20, output_tokens: 40, cost_nanousd: 2000, unknown_costs: 0,
        latency: { value: 0.12, low: 0.12, high: 0.12 }, cost_per_call: { value: 0.000001, low: 0.000001, high: 0.000001 }, scores }],
      differences: [], gates: [], cost_nanousd: 2000, scoring_nanousd: 0, unknown_costs: 0,
      cases: [one('refund', 'How long do I have to send it back?', passed, answer), one('invoice', 'Where is my invoice?', 1, 'Within 14 days.')],
    };
  };
  const keep = async (...what) => {
    const kept = await page.request.post(new URL('/api/evaluations', demo.url).href, { data: report(...what) });
    assert.equal(kept.status(), 201, await kept.text());
    return (await kept.json()).id;
  };
  await keep('2026-11-01T10:00:00Z', 'You have a month\nfor that.', 0);
  const second = await keep('2026-11-02T10:00:00Z', 'Within 14 days\nfor that.', 1);
  await page.look(`/evaluations/${second}`);
  await page.click('text=Compare');
  assert.equal(await page.locator('h1').textContent(), 'Evaluations side by side');
  const exact = await page.locator('tbody tr', { hasText: 'exact' }).textContent();
  assert.match(exact, /\+0\.500/, exact);
  await page.click('summary:has-text("refund")');
  assert.deepEqual(await page.locator('.halves del, .halves ins').allTextContents(), ['You have a month', 'Within 14 days'].flatMap((text) => text.split(/(?<= )/)));
  await keepsNobodyOut(page, 'two evaluations');
  for (const [theme, language] of [['light', 'en'], ['dark', 'de']]) {
    await page.goto(`${page.url().split('&lang')[0]}&lang=${language}`);
    await page.selectOption('#theme', theme);
    await page.locator('details summary').last().click();
    await page.screenshot({ path: join(SCREENSHOTS, `evaluations-compare-${theme}-${language}.png`), fullPage: true });
  }
  assert.deepEqual(page.wrongs, []);
  await page.context().close();
});

test('a call is drawn as it went', async () => {
  const page = await openPage(browser, demo);
  await page.look('/calls?model=support&outcome=ok&user=ada');
  await page.locator('#calls tbody a.mono').first().click();
  const steps = await page.locator('.steps tbody th').allTextContents();
  assert.ok(steps.some((step) => step.includes('Attempt') && step.includes('sim/large')), steps.join());
  assert.ok(await page.locator('.waterfall .stream').count() >= 1);
  assert.equal(await page.locator('.waterfall .moment').count(), 1, 'ada streams: a first token is marked');
  await page.context().close();
});

test('a prompt is played through the gateway, streamed and billed', async () => {
  const page = await openPage(browser, demo);
  await page.look('/playground?model=support');
  await page.fill('#key', 'tg-demo-helpdesk');
  await page.fill('#user', 'bob');
  await page.click('#send');
  await page.waitForFunction(() => document.getElementById('state').textContent === 'done');
  assert.ok((await page.locator('#reply').textContent()).length > 20);
  await page.waitForFunction(() => document.querySelector('[data-fact=cost]').textContent.startsWith('$'));
  assert.ok(Number(await page.locator('[data-fact=output]').textContent()) > 0);
  assert.match(await page.locator('#headers').textContent(), /tone=warm/);
  await page.screenshot({ path: join(SCREENSHOTS, 'played-light-en.png'), fullPage: true });
  await page.locator('#headers a').click();
  assert.equal(await page.locator('h1').textContent(), 'Call');
  assert.deepEqual(page.wrongs, []);

  await page.look('/playground');
  await page.fill('#key', 'tg-wrong');
  await page.keyboard.press('Control+Enter');
  await page.waitForFunction(() => document.getElementById('state').textContent.startsWith('401'));
  await page.context().close();
});

test('what operators did is in the audit log, whose chain is whole', async () => {
  const page = await openPage(browser, demo);
  await page.look('/audit');
  assert.match(await page.locator('tbody').textContent(), /budgets\.credit.*a goodwill gesture/s);
  assert.match(await page.locator('.banner.calm').textContent(), /chain is whole. Lines: 1/);
  await page.context().close();
});

test('without a call log pages say how to turn it on', async () => {
  const silent = await startServe(`records: none
server: { listen: "127.0.0.1:0", admin: "127.0.0.1:0" }
auth: none
providers: { sim: { kind: simulated } }
`);
  const page = await openPage(browser, silent);
  for (const [name, path] of [['overview', '/'], ['calls', '/calls']]) {
    assert.equal((await page.look(path)).status(), 200);
    assert.equal(await page.locator('pre').textContent(), 'records: sqlite');
    await page.screenshot({ path: join(SCREENSHOTS, `${name}-without-log.png`) });
  }
  for (const path of ['/budgets', '/models', '/prompts', '/experiments', '/audit']) {
    await page.look(path);
    assert.equal(await page.locator('.empty').count(), 1, `${path} says what to do`);
    await page.screenshot({ path: join(SCREENSHOTS, `${path.slice(1)}-empty.png`) });
  }
  assert.deepEqual(page.wrongs, []);
  await page.context().close();
  await silent.stop();
});

test('pages of forms and comparisons fit a narrow window', async () => {
  const context = await browser.newContext({ locale: 'de', viewport: { width: 390, height: 800 } });
  const page = await context.newPage();
  for (const name of ['what-if', 'models-compare', 'prompts-compare', 'experiments']) {
    await page.goto(new URL(PAGES[name].path, demo.url).href);
    const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
    assert.ok(wide <= 0, `${name} is ${wide} pixels too wide`);
    await page.screenshot({ path: join(SCREENSHOTS, `${name}-narrow.png`), fullPage: true });
  }
  await context.close();
});

test('without scripts the figures are there as tables', async () => {
  const context = await browser.newContext({ javaScriptEnabled: false });
  const page = await context.newPage();
  await page.goto(demo.url);
  assert.ok(await page.locator('#points tbody tr').count() > 1);
  assert.ok(await page.locator('#by tbody tr').count() > 1);
  await context.close();
});

test('a browser signs in at a provider on another site and comes back signed in; so it does with a token', async (t) => {
  const provider = await startProvider(['ops']);
  const gateway = await startServe(`records: none
server:
  listen: "127.0.0.1:0"
  admin: "127.0.0.1:0"
  admin_token: dashboard-test-0123456789
  oidc: { issuer: "${provider.issuer}", client_id: tollgate, roles: { operator: [ops] } }
auth: none
providers: { sim: { kind: simulated } }
`);
  t.after(() => Promise.all([gateway.stop(), provider.stop()]));
  for (const [language, theme] of [['en', 'light'], ['de', 'dark']]) {
    const page = await openPage(browser, gateway, { language, theme });
    page.setDefaultTimeout(10_000);
    await page.goto(new URL('/models?lang=en', gateway.url).href);
    assert.equal(new URL(page.url()).pathname, '/login');
    await page.evaluate(AXE);
    const { violations } = await page.evaluate(() => axe.run());
    assert.deepEqual(violations.map(({ id, nodes }) => [id, nodes.map((node) => node.html)]), []);
    await page.screenshot({ path: join(SCREENSHOTS, `login-${language}-${theme}.png`) });
    await page.locator('main a.button').click();
    await page.locator('#yes').click();
    await page.waitForURL('**/models?lang=en');
    assert.equal(await page.locator('.side-foot form span').textContent(), 'ann@example.org (oidc)');
    await page.locator('.side-foot form button').click();
    await page.waitForURL('**/login');
    await page.locator('#token').fill('dashboard-test-0123456789');
    await page.locator('form button').click();
    await page.waitForURL(gateway.url);
    assert.equal(await page.locator('.side-foot form span').textContent(), 'admin token');
    await page.context().close();
  }
});
