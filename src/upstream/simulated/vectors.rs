//! Embeddings: unit vectors, the same for the same text, and nearer for texts that share words.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::{
    Call, Planned,
    prose::{Random, hash, share_of},
};

const DIMENSIONS_DEFAULT: u64 = 1536;
const DIMENSIONS_MAX: u64 = 4096;
const INPUTS_MAX: usize = 2048;
/// Words of a text that count.
const WORDS_MAX: usize = 256;

pub(super) fn embeddings(call: &Call<'_>) -> Result<Planned, String> {
    let request = &call.request;
    let inputs = inputs(&request["input"])?;
    let dimensions = request["dimensions"].as_u64().unwrap_or(DIMENSIONS_DEFAULT);
    if !(1..=DIMENSIONS_MAX).contains(&dimensions) {
        return Err(format!("`dimensions` must be 1 to {DIMENSIONS_MAX}."));
    }
    let as_base64 = request["encoding_format"] == "base64";
    let data: Vec<Value> = inputs
        .iter()
        .enumerate()
        .map(|(index, input)| {
            let vector = unit_vector(&input.text(), dimensions as usize);
            let embedding = if as_base64 { encode(&vector) } else { json!(vector) };
            json!({"object": "embedding", "index": index, "embedding": embedding})
        })
        .collect();
    let tokens: u64 = inputs.iter().map(|input| input.tokens(call)).sum();
    Ok(Planned::at_once(&json!({
        "object": "list",
        "data": data,
        "model": call.model()?,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    })))
}

/// A text, or the ids of its tokens.
enum Input<'a> {
    Text(&'a str),
    Ids(&'a [Value]),
}

impl Input<'_> {
    fn text(&self) -> String {
        match self {
            Input::Text(text) => (*text).to_owned(),
            Input::Ids(ids) => ids.iter().map(|id| format!("{id} ")).collect(),
        }
    }

    fn tokens(&self, call: &Call<'_>) -> u64 {
        match self {
            Input::Text(text) => call.tokens(text),
            Input::Ids(ids) => ids.len() as u64,
        }
    }
}

/// One input or many: a text, token ids, or a list of either.
fn inputs(input: &Value) -> Result<Vec<Input<'_>>, String> {
    let wrong = || "`input` must be a text, token ids, or a list of these.".to_owned();
    match input {
        Value::String(text) => Ok(vec![Input::Text(text)]),
        Value::Array(items) if items.is_empty() || items.len() > INPUTS_MAX => Err(wrong()),
        Value::Array(items) if items.iter().all(Value::is_u64) => Ok(vec![Input::Ids(items)]),
        Value::Array(items) => items.iter().map(|item| one_input(item).ok_or_else(wrong)).collect(),
        _ => Err(wrong()),
    }
}

fn one_input(item: &Value) -> Option<Input<'_>> {
    item.as_str().map(Input::Text).or_else(|| item.as_array().map(|ids| Input::Ids(ids)))
}

/// The sum of a vector for each word, at length 1.
fn unit_vector(text: &str, dimensions: usize) -> Vec<f32> {
    let mut sum = vec![0.0_f64; dimensions];
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).take(WORDS_MAX);
    // The whole text weighs in too, so that an empty one has a vector and two orders of words differ.
    for (word, weight) in words.map(|word| (word.to_lowercase(), 1.0)).chain([(text.to_owned(), 0.5)]) {
        let mut random = Random(hash(&word, "embedding"));
        sum.iter_mut().for_each(|value| *value += weight * (share_of(random.next()) - 0.5));
    }
    let length = sum.iter().map(|value| value * value).sum::<f64>().sqrt();
    sum.iter().map(|value| (value / length) as f32).collect()
}

/// Little-endian 32-bit floats in base64, as OpenAI's clients ask for by default.
fn encode(vector: &[f32]) -> Value {
    let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
    json!(STANDARD.encode(bytes))
}
