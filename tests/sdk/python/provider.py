"""A small provider that speaks OpenAI's API, for what a simulated one does not do: tools, schemas, faults on demand.

What it answers depends on the model's name: `flaky` refuses each second call, `endless` streams until the client goes.
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

USAGE = {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14}


class Provider:
    """The server, what it heard, and an event that is set when a client leaves an endless stream."""

    def __init__(self):
        self.requests = []
        self.left = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(self))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def handler_of(provider):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_POST(self):
            length = int(self.headers.get("content-length") or 0)
            raw = self.rfile.read(length) if length else self.read_chunks()
            body = json.loads(raw)
            provider.requests.append({"path": self.path, "headers": dict(self.headers), "body": body, "raw": raw})
            answer = {"/v1/chat/completions": self.chat, "/v1/embeddings": self.embed, "/v1/responses": self.respond}
            answer[self.path](body)

        def read_chunks(self):
            data = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data

        def chat(self, body):
            if body["model"] == "flaky" and sum(r["body"].get("model") == "flaky" for r in provider.requests) % 2:
                error = {"message": "slow down", "type": "requests", "param": None, "code": "rate_limit_exceeded"}
                return self.json(429, {"error": error}, {"retry-after": "0"})
            if body["model"] == "endless":
                return self.endless()
            if body.get("stream"):
                return self.stream(chat_events(body))
            message = {"role": "assistant", "content": "one two three", "refusal": None}
            reason = "stop"
            if body.get("tools"):
                names = [tool["function"]["name"] for tool in body["tools"]]
                calls = [call(number, name) for number, name in enumerate(names)]
                message, reason = {"role": "assistant", "content": None, "tool_calls": calls}, "tool_calls"
            if body.get("response_format", {}).get("type") == "json_schema":
                message["content"] = '{"city": "Berlin", "population": 3700000}'
            choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
            headers = {"x-request-id": "req_provider", "x-ratelimit-remaining-requests": "41"}
            self.json(200, {**head("chat.completion", body), "choices": [choice], "usage": USAGE}, headers)

        def embed(self, body):
            inputs = body["input"] if isinstance(body["input"], list) else [body["input"]]
            data = [{"object": "embedding", "index": n, "embedding": vector(body)} for n, _ in enumerate(inputs)]
            self.json(200, {"object": "list", "data": data, "model": body["model"], "usage": {"prompt_tokens": 5, "total_tokens": 5}})

        def respond(self, body):
            if not body.get("stream"):
                return self.json(200, response(body, "completed"))
            first = {"type": "response.created", "sequence_number": 0, "response": response(body, "in_progress")}
            delta = {"type": "response.output_text.delta", "sequence_number": 1, "item_id": "msg_1", "output_index": 0, "content_index": 0, "delta": "one two three", "logprobs": []}
            last = {"type": "response.completed", "sequence_number": 2, "response": response(body, "completed")}
            self.stream([f"event: {e['type']}\ndata: {json.dumps(e)}\n\n" for e in (first, delta, last)])

        def endless(self):
            self.start(200, {"content-type": "text/event-stream", "transfer-encoding": "chunked"})
            try:
                while True:
                    self.chunk(chat_event({"content": "more "}))
            except OSError:
                provider.left.set()
                self.close_connection = True

        def stream(self, events):
            self.start(200, {"content-type": "text/event-stream", "transfer-encoding": "chunked"})
            for event in events:
                self.chunk(event)
            self.wfile.write(b"0\r\n\r\n")

        def chunk(self, text):
            data = text.encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

        def json(self, status, value, headers=None):
            data = json.dumps(value).encode()
            self.start(status, {"content-type": "application/json", "content-length": str(len(data)), **(headers or {})})
            self.wfile.write(data)

        def start(self, status, headers):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

    return Handler


def head(kind, body):
    return {"id": "chatcmpl-1", "object": kind, "created": 1700000000, "model": body["model"]}


def call(number, name):
    arguments = json.dumps({"city": f"city {number}"})
    return {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": arguments}}


def vector(body):
    if body.get("encoding_format") == "base64":
        return "AACAPgAAAL8="  # 0.25 and -0.5 as little-endian floats
    return [0.25, -0.5]


def chat_event(delta, **more):
    choice = {"index": 0, "delta": delta, "finish_reason": None, **more}
    return f"data: {json.dumps({**head('chat.completion.chunk', {'model': 'm'}), 'choices': [choice]})}\n\n"


def chat_events(body):
    if body.get("tools"):
        name = body["tools"][0]["function"]["name"]
        opening = {"index": 0, "id": "call_0", "type": "function", "function": {"name": name, "arguments": ""}}
        deltas = [{"role": "assistant", "tool_calls": [opening]}]
        deltas += [{"tool_calls": [{"index": 0, "function": {"arguments": part}}]} for part in ('{"city":', ' "Berlin"}')]
    else:
        deltas = [{"role": "assistant", "content": ""}, *({"content": text} for text in ("one ", "two ", "three"))]
    events = [chat_event(delta) for delta in deltas]
    events.append(chat_event({}, finish_reason="tool_calls" if body.get("tools") else "stop"))
    if (body.get("stream_options") or {}).get("include_usage"):
        events.append(f"data: {json.dumps({**head('chat.completion.chunk', body), 'choices': [], 'usage': USAGE})}\n\n")
    return [*events, "data: [DONE]\n\n"]


def response(body, status):
    text = {"type": "output_text", "text": "one two three", "annotations": []}
    message = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [text]}
    usage = {"input_tokens": 11, "output_tokens": 3, "total_tokens": 14, "input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
    done = status == "completed"
    return {"id": "resp_1", "object": "response", "created_at": 1, "status": status, "model": body["model"], "output": [message] if done else [],
            "usage": usage if done else None, "parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "error": None,
            "incomplete_details": None, "instructions": None, "metadata": {}, "temperature": 1.0, "top_p": 1.0}
