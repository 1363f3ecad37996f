//! What a call costs, to the nano-dollar: twenty vectors worked out by hand, each sent streamed and not.

use serde_json::{Value, json};

use crate::support::{
    Gateway, KEY, PROVIDER_KEY, Reply, Upstream,
    gateway::Setup,
    upstream::{DONE, event},
};

/// Usage, a price and what they come to. `prompt` and `output` are totals: cached, written and reasoning tokens are parts.
struct Vector {
    name: &'static str,
    dialect: Dialect,
    price: &'static str,
    prompt: i64,
    cached: i64,
    cache_write: i64,
    output: i64,
    reasoning: i64,
    cost_nanousd: i64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Dialect {
    OpenAi,
    Anthropic,
}
use Dialect::{Anthropic, OpenAi};

/// Fresh prompt, cached, written and output tokens, each times its price, added, rounded up once.
///
/// The first two are from bug reports (BerriAI/litellm#14849 and #30715): 184,918 and 1,063,761 micro-dollars.
#[rustfmt::skip]
const VECTORS: [Vector; 20] = [
    Vector { name: "cached_long_prompt", dialect: OpenAi, price: "input: 1.25 USD/1M, cached: 0.625 USD/1M, output: 10 USD/1M", prompt: 262_960, cached: 257_955, cache_write: 0, output: 1744, reasoning: 0, cost_nanousd: 184_918_125 },
    Vector { name: "messages_written", dialect: Anthropic, price: "input: 5 USD/1M, cache_write: 6.25 USD/1M, cached: 0.5 USD/1M, output: 25 USD/1M", prompt: 159_223, cached: 0, cache_write: 159_217, output: 2745, reasoning: 0, cost_nanousd: 1_063_761_250 },
    Vector { name: "plain", dialect: OpenAi, price: "input: 0.15 USD/1M, cached: 0.075 USD/1M, output: 0.60 USD/1M", prompt: 1000, cached: 0, cache_write: 0, output: 500, reasoning: 0, cost_nanousd: 450_000 },
    Vector { name: "one_token_each", dialect: OpenAi, price: "input: 0.15 USD/1M, output: 0.60 USD/1M", prompt: 1, cached: 0, cache_write: 0, output: 1, reasoning: 0, cost_nanousd: 750 },
    Vector { name: "fraction_rounds_up", dialect: OpenAi, price: "input: 0.0375 USD/1M, output: 0.15 USD/1M", prompt: 1, cached: 0, cache_write: 0, output: 0, reasoning: 0, cost_nanousd: 38 },
    Vector { name: "all_cached", dialect: OpenAi, price: "input: 2.5 USD/1M, cached: 1.25 USD/1M, output: 10 USD/1M", prompt: 2048, cached: 2048, cache_write: 0, output: 1, reasoning: 0, cost_nanousd: 2_570_000 },
    Vector { name: "cached_without_its_own_price", dialect: OpenAi, price: "input: 2.5 USD/1M, output: 10 USD/1M", prompt: 2048, cached: 1024, cache_write: 0, output: 10, reasoning: 0, cost_nanousd: 5_220_000 },
    Vector { name: "reasoning_is_part_of_output", dialect: OpenAi, price: "input: 1.10 USD/1M, cached: 0.55 USD/1M, output: 4.40 USD/1M", prompt: 120, cached: 0, cache_write: 0, output: 2100, reasoning: 1984, cost_nanousd: 9_372_000 },
    Vector { name: "no_output", dialect: OpenAi, price: "input: 3 USD/1M, output: 15 USD/1M", prompt: 777, cached: 0, cache_write: 0, output: 0, reasoning: 0, cost_nanousd: 2_331_000 },
    Vector { name: "large_context", dialect: OpenAi, price: "input: 2 USD/1M, cached: 0.5 USD/1M, output: 8 USD/1M", prompt: 1_047_576, cached: 0, cache_write: 0, output: 32_768, reasoning: 0, cost_nanousd: 2_357_296_000 },
    Vector { name: "dear_model", dialect: OpenAi, price: "input: 150 USD/1M, output: 600 USD/1M", prompt: 8192, cached: 0, cache_write: 0, output: 4096, reasoning: 0, cost_nanousd: 3_686_400_000 },
    Vector { name: "cheap_model", dialect: OpenAi, price: "input: 0.02 USD/1M, output: 0.04 USD/1M", prompt: 333, cached: 0, cache_write: 0, output: 333, reasoning: 0, cost_nanousd: 19_980 },
    Vector { name: "free_input", dialect: OpenAi, price: "input: 0 USD/1M, output: 10 USD/1M", prompt: 5000, cached: 0, cache_write: 0, output: 7, reasoning: 0, cost_nanousd: 70_000 },
    Vector { name: "odd_price", dialect: OpenAi, price: "input: 0.333 USD/1M, cached: 0.111 USD/1M, output: 0.777 USD/1M", prompt: 101, cached: 50, cache_write: 0, output: 13, reasoning: 0, cost_nanousd: 32_634 },
    Vector { name: "messages_plain", dialect: Anthropic, price: "input: 3 USD/1M, cache_write: 3.75 USD/1M, cached: 0.30 USD/1M, output: 15 USD/1M", prompt: 2095, cached: 0, cache_write: 0, output: 503, reasoning: 0, cost_nanousd: 13_830_000 },
    Vector { name: "messages_read", dialect: Anthropic, price: "input: 3 USD/1M, cache_write: 3.75 USD/1M, cached: 0.30 USD/1M, output: 15 USD/1M", prompt: 100_050, cached: 100_000, cache_write: 0, output: 800, reasoning: 0, cost_nanousd: 42_150_000 },
    Vector { name: "messages_read_and_written", dialect: Anthropic, price: "input: 0.8 USD/1M, cache_write: 1 USD/1M, cached: 0.08 USD/1M, output: 4 USD/1M", prompt: 190_107, cached: 188_086, cache_write: 2000, output: 393, reasoning: 0, cost_nanousd: 18_635_680 },
    Vector { name: "messages_only_written", dialect: Anthropic, price: "input: 15 USD/1M, cache_write: 18.75 USD/1M, cached: 1.5 USD/1M, output: 75 USD/1M", prompt: 1025, cached: 0, cache_write: 1025, output: 1, reasoning: 0, cost_nanousd: 19_293_750 },
    Vector { name: "cached_and_reasoning", dialect: OpenAi, price: "input: 1.25 USD/1M, cached: 0.125 USD/1M, output: 10 USD/1M", prompt: 30_000, cached: 28_672, cache_write: 0, output: 5120, reasoning: 4096, cost_nanousd: 56_444_000 },
    Vector { name: "large_prompt_without_output", dialect: OpenAi, price: "input: 0.13 USD/1M, output: 0 USD/1M", prompt: 8191, cached: 0, cache_write: 0, output: 0, reasoning: 0, cost_nanousd: 1_064_830 },
];

#[tokio::test]
async fn twenty_vectors_cost_what_was_worked_out_streamed_and_not() {
    let upstream = Upstream::answering(|request| {
        let body = request.json();
        let model = body["model"].as_str().expect("a model");
        let vector = VECTORS.iter().find(|vector| vector.name == model).expect("a vector of that name");
        vector.reply(body["stream"] == true)
    })
    .await;
    let gateway = priced(&upstream).run().await;

    for vector in &VECTORS {
        for streamed in [false, true] {
            vector.call(&gateway, streamed).send().await.expect(200);

            let record = gateway.next_record().await;
            let shown = format!("{}, streamed: {streamed}", vector.name);
            assert_eq!(record.text("usage_source"), "provider", "{shown}");
            assert_eq!(record.number("prompt_tokens"), vector.prompt, "{shown}");
            assert_eq!(record.number("cached_tokens"), vector.cached, "{shown}");
            assert_eq!(record.number("completion_tokens"), vector.output, "{shown}");
            assert_eq!(record.number("reasoning_tokens"), vector.reasoning, "{shown}");
            assert_eq!(record.number("cost_nanousd"), vector.cost_nanousd, "{shown}");
        }
    }
}

#[tokio::test]
async fn tokens_and_cost_are_counted_in_metrics() {
    let upstream = Upstream::answering(|_| VECTORS[0].reply(false)).await;
    let gateway = priced(&upstream).run().await;

    VECTORS[0].call(&gateway, false).send().await.expect(200);
    gateway.next_record().await;

    let metrics = gateway.metrics().await;
    let tokens = |direction: &str| metrics.value("tollgate_tokens_total", &[("direction", direction)]);
    assert_eq!(
        (tokens("input"), tokens("cached"), tokens("output")),
        (262_960.0, 257_955.0, 1744.0),
        "{}",
        metrics.text
    );
    let cost = metrics.value("tollgate_cost_usd_total", &[]);
    assert!((cost - 0.184_918_125).abs() < 1e-9, "{cost}");
}

#[tokio::test]
async fn the_cost_is_told_where_it_is_known_before_the_body() {
    let upstream = Upstream::answering(|_| VECTORS[0].reply(false)).await;
    let gateway = priced(&upstream).run().await;

    let response = VECTORS[0].call(&gateway, false).send().await.expect(200);

    if let Some(cost) = response.header("x-tollgate-cost-usd") {
        let cost: f64 = cost.parse().expect("a decimal number of dollars");
        assert!((cost - 0.184_918_125).abs() < 1e-6, "{cost}");
    }
}

fn priced(upstream: &Upstream) -> Setup {
    let anthropic = format!(r#"kind: anthropic, base_url: "{}/v1", api_key: {PROVIDER_KEY}"#, upstream.url());
    let setup = Gateway::before(upstream).provider("claude", &anthropic);
    VECTORS.iter().fold(setup, |setup, vector| setup.price(&vector.target(), vector.price))
}

impl Vector {
    fn target(&self) -> String {
        let provider = if self.dialect == OpenAi { "upstream" } else { "claude" };
        format!("{provider}/{}", self.name)
    }

    fn call(&self, gateway: &Gateway, streamed: bool) -> crate::support::Call {
        let path = if self.dialect == OpenAi { "/v1/chat/completions" } else { "/v1/messages" };
        let mut body =
            json!({"model": self.target(), "max_tokens": 64, "messages": [{"role": "user", "content": "hi"}]});
        if streamed {
            body["stream"] = json!(true);
        }
        gateway.post(path).key(KEY).json(&body)
    }

    fn reply(&self, streamed: bool) -> Reply {
        match (self.dialect, streamed) {
            (OpenAi, false) => Reply::json(
                200,
                &json!({"object": "chat.completion", "choices": [{"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}], "usage": self.usage()}),
            ),
            (OpenAi, true) => Reply::stream()
                .data(event(
                    &json!({"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "x"}}]}),
                ))
                .data(event(&json!({"object": "chat.completion.chunk", "choices": [], "usage": self.usage()})))
                .data(DONE),
            (Anthropic, false) => Reply::json(
                200,
                &json!({"id": "m", "type": "message", "role": "assistant", "model": self.name, "content": [{"type": "text", "text": "x"}], "stop_reason": "end_turn", "stop_sequence": null, "usage": self.usage()}),
            ),
            (Anthropic, true) => self.messages_stream(),
        }
    }

    /// Input with the first event and one output token, the final output with the last but one: totals, not deltas.
    fn messages_stream(&self) -> Reply {
        let mut begun = self.usage();
        begun["output_tokens"] = json!(1.min(self.output));
        let named = |kind: &str, value: Value| format!("event: {kind}\ndata: {value}\n\n");
        Reply::stream()
            .data(named("message_start", json!({"type": "message_start", "message": {"id": "m", "type": "message", "role": "assistant", "model": self.name, "content": [], "stop_reason": null, "usage": begun}})))
            .data(named("content_block_start", json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}})))
            .data(named("ping", json!({"type": "ping"})))
            .data(named("content_block_delta", json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "x"}})))
            .data(named("content_block_stop", json!({"type": "content_block_stop", "index": 0})))
            .data(named("message_delta", json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": self.output}})))
            .data(named("message_stop", json!({"type": "message_stop"})))
    }

    /// As the dialect spells it: Anthropic's `input_tokens` leaves the cache's out, OpenAI's `prompt_tokens` has them in.
    fn usage(&self) -> Value {
        if self.dialect == Anthropic {
            let fresh = self.prompt - self.cached - self.cache_write;
            return json!({"input_tokens": fresh, "cache_creation_input_tokens": self.cache_write, "cache_read_input_tokens": self.cached, "output_tokens": self.output});
        }
        json!({
            "prompt_tokens": self.prompt, "completion_tokens": self.output, "total_tokens": self.prompt + self.output,
            "prompt_tokens_details": {"cached_tokens": self.cached, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning, "audio_tokens": 0, "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0},
        })
    }
}
