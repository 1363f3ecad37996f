// The OpenAI SDK for Node against the gateway, as an application would use it: only `baseURL` and the key differ.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import OpenAI from 'openai';
import { KEY, NARROW_KEY, startGateway, startProvider } from './gateway.mjs';

const messages = [{ role: 'user', content: 'hello' }];
const tools = [{ type: 'function', function: { name: 'weather', parameters: { type: 'object', properties: { city: { type: 'string' } } } } }];
let provider;
let gateway;
let client;

before(async () => {
  provider = await startProvider();
  gateway = await startGateway(provider);
  client = new OpenAI({ baseURL: `${gateway.url}/v1`, apiKey: KEY, timeout: 20_000, maxRetries: 0 });
});

after(async () => {
  await gateway?.stop();
  provider?.close();
});

for (const model of ['support', 'mock/m', 'sim/any']) {
  test(`a completion of ${model} has text and usage`, async () => {
    const reply = await client.chat.completions.create({ model, messages });
    assert.ok(reply.choices[0].message.content);
    assert.ok(reply.usage.completion_tokens > 0);
  });

  test(`a stream of ${model} has text, and usage only when asked for`, async () => {
    for (const asked of [false, true]) {
      const options = asked ? { stream_options: { include_usage: true } } : {};
      const stream = await client.chat.completions.create({ model, messages, stream: true, ...options });
      let text = '';
      let usages = 0;
      for await (const chunk of stream) {
        text += chunk.choices[0]?.delta?.content ?? '';
        usages += chunk.usage ? 1 : 0;
        assert.ok(asked || chunk.choices.length > 0, 'an empty chunk that nobody asked for');
      }
      assert.ok(text.trim());
      assert.equal(usages, asked ? 1 : 0);
    }
  });
}

test('tool calls come through', async () => {
  const reply = await client.chat.completions.create({ model: 'support', messages, tools });
  assert.equal(reply.choices[0].message.tool_calls[0].function.arguments, '{"city": "Berlin"}');
});

test('structured output is parsed', async () => {
  const schema = { type: 'object', properties: { city: { type: 'string' } }, required: ['city'], additionalProperties: false };
  const response_format = { type: 'json_schema', json_schema: { name: 'city', strict: true, schema } };
  const reply = await client.chat.completions.create({ model: 'support', messages, response_format });
  assert.deepEqual(JSON.parse(reply.choices[0].message.content), { city: 'Berlin' });
  assert.deepEqual(provider.requests.at(-1).body.response_format, response_format);
});

test('embeddings come through', async () => {
  const reply = await client.embeddings.create({ model: 'mock/embed', input: 'a' });
  assert.deepEqual([...reply.data[0].embedding], [0.25, -0.5]);
});

test('raw headers are the provider’s and the gateway’s', async () => {
  const { data, response } = await client.chat.completions.create({ model: 'support', messages }).withResponse();
  assert.equal(data.choices[0].message.content, 'one two three');
  assert.equal(response.headers.get('x-request-id'), 'req_provider');
  assert.equal(response.headers.get('x-tollgate-model'), 'mock/m');
  assert.ok(response.headers.get('x-tollgate-call'));
});

test('an aborted stream is cancelled at the provider', async () => {
  const stream = await client.chat.completions.create({ model: 'endless', messages, stream: true });
  for await (const chunk of stream) {
    assert.equal(chunk.choices[0].delta.content, 'more ');
    stream.controller.abort();
    break;
  }
  const deadline = Date.now() + 5000;
  while (provider.left === 0 && Date.now() < deadline) await new Promise((tick) => setTimeout(tick, 10));
  assert.equal(provider.left, 1);
});

test('the SDK’s own retry gets through', async () => {
  const patient = new OpenAI({ baseURL: `${gateway.url}/v1`, apiKey: KEY, maxRetries: 2 });
  const heard = provider.requests.length;
  const reply = await patient.chat.completions.create({ model: 'flaky', messages });
  assert.equal(reply.choices[0].message.content, 'one two three');
  assert.equal(provider.requests.length - heard, 2);
});

for (const [apiKey, raised, code] of [
  ['wrong', OpenAI.AuthenticationError, 'invalid_api_key'],
  [NARROW_KEY, OpenAI.PermissionDeniedError, 'model_not_allowed'],
]) {
  test(`${code} is the SDK’s own class of error`, async () => {
    const refused = new OpenAI({ baseURL: `${gateway.url}/v1`, apiKey, maxRetries: 0 });
    await assert.rejects(refused.chat.completions.create({ model: 'mock/m', messages }), (error) => {
      assert.ok(error instanceof raised, String(error));
      assert.equal(error.code, code);
      return true;
    });
  });
}
