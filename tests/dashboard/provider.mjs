// A provider of OpenID Connect that asks nobody anything: enough to see what a real browser makes of being sent there and back.

import { createServer } from 'node:http';
import { once } from 'node:events';

/** Starts it on `localhost`, which is another site than 127.0.0.1; everybody is a member of `groups`. */
export async function startProvider(groups) {
  const nonces = new Map();
  const part = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');
  const server = createServer((request, reply) => {
    const url = new URL(request.url, issuer);
    const json = (value) => reply.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(value));
    if (url.pathname === '/.well-known/openid-configuration') {
      return json({ issuer, authorization_endpoint: `${issuer}/authorize`, token_endpoint: `${issuer}/token` });
    }
    if (url.pathname === '/authorize') {
      const asked = url.searchParams;
      const code = `code-${nonces.size}`;
      nonces.set(code, asked.get('nonce'));
      const back = `${asked.get('redirect_uri')}?code=${code}&state=${asked.get('state')}`;
      // A page with a link, as a person would meet it: the way back begins on this site.
      return reply.writeHead(200, { 'content-type': 'text/html' }).end(`<a id="yes" href="${back}">yes</a>`);
    }
    let body = '';
    request.on('data', (piece) => { body += piece; }).on('end', () => {
      const now = Math.floor(Date.now() / 1000);
      const nonce = nonces.get(new URLSearchParams(body).get('code'));
      const claims = { iss: issuer, aud: 'tollgate', sub: 'ann', email: 'ann@example.org', groups, nonce, iat: now, exp: now + 60 };
      json({ id_token: `${part({ alg: 'RS256' })}.${part(claims)}.c2lnbmVk` });
    });
  });
  server.listen(0, 'localhost');
  await once(server, 'listening');
  const issuer = `http://localhost:${server.address().port}`;
  return { issuer, stop: () => server.close() };
}
