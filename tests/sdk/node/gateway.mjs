// Starts the built gateway in front of a simulated provider and a scripted one that is as small as the tests need.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

const ROOT = fileURLToPath(new URL('../../..', import.meta.url));
const BINARY = process.env.TOLLGATE_BIN ?? join(ROOT, 'target/debug/tollgate');
export const KEY = 'tg-sdk-0123456789abcdef0123456789abcdef';
export const NARROW_KEY = 'tg-narrow-0123456789abcdef0123456789abcdef';

const USAGE = { prompt_tokens: 11, completion_tokens: 3, total_tokens: 14 };
const head = (object) => ({ id: 'chatcmpl-1', object, created: 1700000000, model: 'm' });
const chunk = (delta) => `data: ${JSON.stringify({ ...head('chat.completion.chunk'), choices: [{ index: 0, delta, finish_reason: null }] })}\n\n`;

/** A provider that refuses each second call of `flaky` and streams `endless` until the client goes. */
export async function startProvider() {
  const provider = { requests: [], left: 0 };
  const server = createServer(async (request, response) => {
    const parts = await request.toArray();
    const body = JSON.parse(Buffer.concat(parts).toString());
    provider.requests.push({ path: request.url, headers: request.headers, body });
    const json = (status, value, headers = {}) => {
      response.writeHead(status, { 'content-type': 'application/json', ...headers });
      response.end(JSON.stringify(value));
    };
    const flaky = provider.requests.filter((heard) => heard.body.model === 'flaky').length;
    if (body.model === 'flaky' && flaky % 2 === 1) {
      return json(429, { error: { message: 'slow down', type: 'requests', param: null, code: 'rate_limit_exceeded' } }, { 'retry-after': '0' });
    }
    if (request.url === '/v1/embeddings') {
      const embedding = body.encoding_format === 'base64' ? 'AACAPgAAAL8=' : [0.25, -0.5];
      return json(200, { object: 'list', data: [{ object: 'embedding', index: 0, embedding }], model: body.model, usage: { prompt_tokens: 5, total_tokens: 5 } });
    }
    if (!body.stream) {
      const call = { id: 'call_0', type: 'function', function: { name: 'weather', arguments: '{"city": "Berlin"}' } };
      const message = body.tools ? { role: 'assistant', content: null, tool_calls: [call] } : { role: 'assistant', content: 'one two three' };
      if (body.response_format) message.content = '{"city": "Berlin"}';
      const choice = { index: 0, message, finish_reason: body.tools ? 'tool_calls' : 'stop' };
      return json(200, { ...head('chat.completion'), choices: [choice], usage: USAGE }, { 'x-request-id': 'req_provider' });
    }
    response.writeHead(200, { 'content-type': 'text/event-stream' });
    if (body.model === 'endless') {
      response.on('close', () => { provider.left += 1; });
      response.write(chunk({ content: 'more ' }));
      return;
    }
    for (const content of ['one ', 'two ', 'three']) response.write(chunk({ content }));
    if (body.stream_options?.include_usage) {
      response.write(`data: ${JSON.stringify({ ...head('chat.completion.chunk'), choices: [], usage: USAGE })}\n\n`);
    }
    response.end('data: [DONE]\n\n');
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  provider.url = `http://127.0.0.1:${server.address().port}`;
  provider.close = () => { server.closeAllConnections(); server.close(); };
  return provider;
}

/** The gateway in front of `provider`. */
export async function startGateway(provider) {
  const directory = mkdtempSync(join(tmpdir(), 'tollgate-sdk-'));
  const config = join(directory, 'tollgate.yaml');
  writeFileSync(config, `
server: { listen: "127.0.0.1:0", admin: "127.0.0.1:0" }
records: none
unpriced: { charge: { input: 1 USD/1M, output: 1 USD/1M } }
default_provider: mock
routing: { attempts: 1, eject: off }
providers:
  mock: { kind: openai, base_url: "${provider.url}/v1", api_key: sk-provider }
  sim: { kind: simulated, tokens_per_second: 2000, time_to_first_token: 5ms }
models:
  support: { live: v1, versions: { v1: { target: mock/m } } }
keys:
  - { name: sdk, secret: "${KEY}" }
  - { name: narrow, secret: "${NARROW_KEY}", models: [support] }
`);
  const child = spawn(BINARY, ['serve', '--config', config], { cwd: directory, stdio: ['ignore', 'pipe', 'pipe'] });
  const log = [];
  createInterface({ input: child.stderr }).on('line', (line) => log.push(line));
  const exited = once(child, 'exit');
  const ready = new Promise((found) => {
    createInterface({ input: child.stdout }).on('line', (line) => line.startsWith('ready ') && found(line));
  });
  const line = await Promise.race([ready, exited.then(() => { throw new Error(`the gateway did not start:\n${log.join('\n')}`); })]);
  const url = `http://${/listen=(\S+)/.exec(line)[1]}`;
  const stop = async () => {
    child.kill('SIGTERM');
    const [code] = await exited;
    rmSync(directory, { recursive: true });
    if (code !== 0) throw new Error(`exit code ${code}:\n${log.join('\n')}`);
  };
  return { url, log, stop };
}
