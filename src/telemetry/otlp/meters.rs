//! The conventions' metrics of generative AI, summed up between two reports. Labels come from the same closed sets as
//! [`crate::telemetry::metrics`]'.

use std::{collections::BTreeMap, sync::Arc};

use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    common::v1::KeyValue,
    metrics::v1::{
        AggregationTemporality, Histogram, HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics,
        Sum, metric::Data, number_data_point,
    },
};

use super::{
    semconv,
    spans::{error_type, resource, scope, text},
};
use crate::{
    policy::traces::{Otlp, Semconv},
    record::Record,
    units::NanoUsd,
};

/// The boundaries that the conventions give.
const TOKENS: [f64; 14] = [
    1.0,
    4.0,
    16.0,
    64.0,
    256.0,
    1024.0,
    4096.0,
    16384.0,
    65536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];
const SECONDS: [f64; 14] = [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];

/// What all series of a call have in common.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Labels {
    operation: &'static str,
    provider: Arc<str>,
    model: Arc<str>,
}

/// Cumulative sums since the exporter began.
#[derive(Debug)]
pub(super) struct Meters {
    began_nanos: u64,
    tokens: BTreeMap<(Labels, &'static str), Buckets>,
    durations: BTreeMap<(Labels, Option<String>), Buckets>,
    costs: BTreeMap<Labels, NanoUsd>,
}

#[derive(Debug)]
struct Buckets {
    bounds: &'static [f64],
    counts: Vec<u64>,
    sum: f64,
}

impl Buckets {
    fn new(bounds: &'static [f64]) -> Buckets {
        Buckets { bounds, counts: vec![0; bounds.len() + 1], sum: 0.0 }
    }

    fn add(&mut self, value: f64) {
        // A bound belongs to the bucket below it.
        self.counts[self.bounds.partition_point(|bound| *bound < value)] += 1;
        self.sum += value;
    }
}

impl Meters {
    pub(super) fn new(began_nanos: u64) -> Meters {
        Meters { began_nanos, tokens: BTreeMap::new(), durations: BTreeMap::new(), costs: BTreeMap::new() }
    }

    pub(super) fn add(&mut self, record: &Record) {
        let labels = Labels {
            operation: semconv::operation(record.endpoint),
            provider: record.provider.clone(),
            model: record.model_label.clone(),
        };
        for (direction, count) in [("input", record.usage.input.0), ("output", record.usage.output.0)] {
            if count > 0 {
                let series = self.tokens.entry((labels.clone(), direction)).or_insert_with(|| Buckets::new(&TOKENS));
                series.add(count as f64);
            }
        }
        let error = record.outcome.is_error().then(|| error_type(record));
        let series = self.durations.entry((labels.clone(), error)).or_insert_with(|| Buckets::new(&SECONDS));
        series.add(record.duration.as_secs_f64());
        let cost = self.costs.entry(labels).or_default();
        *cost = cost.saturating_add(record.cost);
    }

    /// The report at `now`, in nanoseconds since 1970.
    pub(super) fn request(&self, otlp: &Otlp, instance: &str, now_nanos: u64) -> ExportMetricsServiceRequest {
        let time = (self.began_nanos, now_nanos);
        let tokens = self.tokens.iter().map(|((labels, direction), series)| {
            let mut attributes = labels.attributes(otlp.semconv);
            attributes.push(text(semconv::TOKEN_TYPE, direction));
            series.point(attributes, time)
        });
        let durations = self.durations.iter().map(|((labels, error), series)| {
            let mut attributes = labels.attributes(otlp.semconv);
            attributes.extend(error.as_deref().map(|error| text(semconv::ERROR_TYPE, error)));
            series.point(attributes, time)
        });
        let costs = self.costs.iter().map(|(labels, cost)| NumberDataPoint {
            attributes: labels.attributes(otlp.semconv),
            start_time_unix_nano: time.0,
            time_unix_nano: time.1,
            value: Some(number_data_point::Value::AsDouble(cost.as_usd())),
            ..NumberDataPoint::default()
        });
        let metrics = vec![
            histogram(semconv::TOKEN_USAGE, "{token}", "Number of input and output tokens used", tokens.collect()),
            histogram(semconv::OPERATION_DURATION, "s", "GenAI operation duration", durations.collect()),
            sum(semconv::COST_METRIC, "USD", "What was charged for calls", costs.collect()),
        ];
        let schema_url = semconv::schema_url(otlp.semconv);
        ExportMetricsServiceRequest {
            resource_metrics: vec![ResourceMetrics {
                resource: Some(resource(otlp, instance)),
                scope_metrics: vec![ScopeMetrics { scope: Some(scope()), metrics, schema_url: schema_url.clone() }],
                schema_url,
            }],
        }
    }
}

impl Labels {
    fn attributes(&self, edition: Semconv) -> Vec<KeyValue> {
        vec![
            text(semconv::OPERATION, self.operation),
            text(semconv::provider_key(edition), semconv::provider_name(&self.provider)),
            text(semconv::REQUEST_MODEL, &self.model),
        ]
    }
}

impl Buckets {
    fn point(&self, attributes: Vec<KeyValue>, (began_nanos, now_nanos): (u64, u64)) -> HistogramDataPoint {
        HistogramDataPoint {
            attributes,
            start_time_unix_nano: began_nanos,
            time_unix_nano: now_nanos,
            count: self.counts.iter().sum(),
            sum: Some(self.sum),
            bucket_counts: self.counts.clone(),
            explicit_bounds: self.bounds.to_vec(),
            ..HistogramDataPoint::default()
        }
    }
}

fn histogram(name: &str, unit: &str, description: &str, data_points: Vec<HistogramDataPoint>) -> Metric {
    let aggregation_temporality = AggregationTemporality::Cumulative as i32;
    metric(name, unit, description, Data::Histogram(Histogram { data_points, aggregation_temporality }))
}

fn sum(name: &str, unit: &str, description: &str, data_points: Vec<NumberDataPoint>) -> Metric {
    let aggregation_temporality = AggregationTemporality::Cumulative as i32;
    metric(name, unit, description, Data::Sum(Sum { data_points, aggregation_temporality, is_monotonic: true }))
}

fn metric(name: &str, unit: &str, description: &str, data: Data) -> Metric {
    let (name, unit, description) = (name.to_owned(), unit.to_owned(), description.to_owned());
    Metric { name, unit, description, data: Some(data), ..Metric::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_falls_into_the_bucket_whose_bound_is_not_below_it() {
        let mut buckets = Buckets::new(&TOKENS);
        [1.0, 2.0, 4.0, 5.0, 1e9].into_iter().for_each(|value| buckets.add(value));
        assert_eq!(buckets.counts[..4], [1, 2, 1, 0]);
        assert_eq!((buckets.counts[14], buckets.counts.iter().sum::<u64>()), (1, 5));
    }
}
