// Starts the built demonstration and a browser that looks at its dashboard.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { chromium } from 'playwright-core';

export const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const BINARY = process.env.TOLLGATE_BIN ?? join(ROOT, 'target/debug/tollgate');
const CHROMIUM = process.env.CHROMIUM ?? '/usr/bin/chromium';
const QUIET = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync'];

/** Starts the binary and waits for a line of its output in which `address` finds the admin listener. */
async function start(args, environment, directory, address) {
  const child = spawn(BINARY, args, { cwd: directory, env: environment, stdio: ['ignore', 'pipe', 'pipe'] });
  const exited = once(child, 'exit');
  const log = [];
  createInterface({ input: child.stderr }).on('line', (line) => log.push(line));
  const told = new Promise((found) => {
    createInterface({ input: child.stdout }).on('line', (line) => {
      const told = address.exec(line)?.[1];
      if (told) found(told.startsWith('http') ? told : `http://${told}/`);
    });
  });
  const url = await Promise.race([told, exited.then(() => { throw new Error(`${args[0]} did not start:\n${log.join('\n')}`); })]);
  const stop = async () => {
    child.kill('SIGTERM');
    await exited;
    rmSync(directory, { recursive: true });
  };
  return { url, stop };
}

const directory = () => mkdtempSync(join(tmpdir(), 'tollgate-dashboard-'));

/** The gateway with this configuration. */
export function startServe(configuration) {
  const place = directory();
  writeFileSync(join(place, 'tollgate.yaml'), configuration);
  return start(['serve', '--config', 'tollgate.yaml'], process.env, place, /^ready .*admin=(\S+)/);
}

/** The demonstration, with its simulated provider: where its dashboard is, and how it ends. */
export function startDemo() {
  const { OPENAI_API_KEY: _, ...environment } = process.env;
  const place = directory();
  return start(['demo'], { ...environment, TOLLGATE_DEMO_DATA: place }, place, /Dashboard\s+(http:\S+)/);
}

export function startBrowser() {
  return chromium.launch({ executablePath: CHROMIUM, args: QUIET });
}

/** A page that notes everything that should not happen: messages, errors, requests elsewhere. */
export async function openPage(browser, demo, { theme = 'light', language = 'en' } = {}) {
  const context = await browser.newContext({ colorScheme: theme, locale: language, viewport: { width: 1440, height: 900 }, reducedMotion: 'reduce' });
  const page = await context.newPage();
  page.wrongs = [];
  page.on('console', (message) => page.wrongs.push(`${message.type()}: ${message.text()}`));
  page.on('pageerror', (error) => page.wrongs.push(`error: ${error.message}`));
  page.on('requestfailed', (request) => {
    // A page that is left takes its poll with it.
    if (request.failure()?.errorText !== 'net::ERR_ABORTED') page.wrongs.push(`failed: ${request.url()}`);
  });
  page.on('request', (request) => {
    if (new URL(request.url()).origin !== new URL(demo.url).origin) page.wrongs.push(`elsewhere: ${request.url()}`);
  });
  page.look = async (path) => {
    const response = await page.goto(new URL(path, demo.url).href);
    await page.evaluate(() => document.fonts.ready);
    return response;
  };
  return page;
}
