//! The gateway as its users meet it: the real binary over sockets, in front of scripted providers.
//!
//! A file a subject; `support` holds the language they are written in. Port 0 everywhere, no network, no order.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop where it is")]

mod admin_api;
mod alerts;
mod analysis;
mod auth;
mod budgets;
mod budgets_admin;
mod calls;
mod charges;
mod cli;
mod config;
mod config_store;
mod connections;
mod costs;
mod docs;
mod drain;
mod eval;
mod experiments;
mod faults;
mod feedback;
mod fixtures;
mod fleet;
mod hostile;
mod http;
mod import;
mod limits;
mod limits_fleet;
mod r#loop;
mod metrics;
mod otlp;
mod plan;
mod prompts;
mod ranks;
mod realtime;
mod registry;
mod routing;
mod secrets;
mod spending;
mod streams;
mod support;
mod support_bot;
mod tls;
mod transparency;
mod trials;
