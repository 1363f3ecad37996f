//! `tollgate demo`: the whole gateway with a simulated provider and a little live traffic, for somebody who has no key yet.
//!
//! It serves `config/demo.yaml` from a directory of its own, which is removed at the end. With `OPENAI_API_KEY` set, calls go to
//! OpenAI, and then nothing is sent by itself: that would cost money.

mod client;
mod once;
mod traffic;
mod workspace;

use std::{
    io::{self, IsTerminal, Write},
    net::SocketAddr,
    path::Path,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use self::{
    client::Client,
    workspace::{Addresses, Backend, Workspace},
};
use super::{
    UNREACHABLE, fail,
    serve::{Running, StopSignals, runtime},
};
use crate::{config, telemetry::logging};

/// A key of `config/demo.yaml`, and those of other teams.
const HELPDESK_KEY: &str = "tg-demo-helpdesk";
const SHOP_KEY: &str = "tg-demo-shop";
const REPORTS_KEY: &str = "tg-demo-reports";
/// How often the status line is written anew.
const STATUS_INTERVAL: Duration = Duration::from_secs(2);

/// Runs the demonstration until it is stopped; with `once`, one round of calls.
///
/// Exit codes: 0 done, 3 when the gateway could not start or a call did not end as it should.
#[must_use]
pub fn run(once: bool) -> ExitCode {
    logging::init("warn");
    let result = if once { runtime().block_on(run_once()) } else { runtime().block_on(run_live()) };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(UNREACHABLE),
        Err(error) => fail(&error, UNREACHABLE),
    }
}

/// One round, always with the simulated provider: a command that ends by itself should not spend anybody's money.
async fn run_once() -> anyhow::Result<bool> {
    let workspace = Workspace::create(Backend::Simulated, Addresses::ANY_FREE)?;
    let running = start(&workspace).await?;
    let client = Client::new(running.gateway.listen, running.gateway.admin);
    let result = once::round(&client, &mut io::stdout()).await;
    running.stop(std::future::pending()).await;
    result
}

async fn run_live() -> anyhow::Result<bool> {
    let backend = Backend::from_environment();
    let addresses = Addresses::free_or_default();
    let workspace = Workspace::create(backend, addresses)?;
    let mut stop = StopSignals::listen()?;
    let running = start(&workspace).await?;
    let (listen, admin) = (running.gateway.listen, running.gateway.admin);
    say(&introduction(&workspace, listen, admin));
    let client = Arc::new(Client::new(listen, admin));
    tokio::select! {
        () = stop.received() => {}
        () = live_traffic(backend, client.clone()) => {}
        () = status_line(&client) => {}
    }
    if io::stdout().is_terminal() {
        say("\n");
    }
    running.stop(stop.received()).await;
    say(&farewell(&workspace));
    Ok(true)
}

async fn start(workspace: &Workspace) -> anyhow::Result<Running> {
    Running::start(config::load(Some(workspace.configuration()))?).await
}

/// Sends pretend users' calls, unless they would cost money. Never ends.
async fn live_traffic(backend: Backend, client: Arc<Client>) {
    if backend == Backend::Simulated {
        traffic::run(client).await;
    }
    std::future::pending().await
}

/// Shows on a terminal how calls and money move; in a pipe nothing, for ever.
async fn status_line(client: &Client) {
    let mut ticks = tokio::time::interval(STATUS_INTERVAL);
    while io::stdout().is_terminal() {
        ticks.tick().await;
        if let Some(status) = client.status().await {
            say(&format!("\r\x1b[2K{status}"));
        }
    }
    std::future::pending().await
}

/// Writes to standard output; one that is closed is no reason to stop.
fn say(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

// === what is said ===

fn introduction(workspace: &Workspace, listen: SocketAddr, admin: SocketAddr) -> String {
    let Workspace { backend, addresses, .. } = workspace;
    let what = match backend {
        Backend::Simulated => {
            "Tollgate is running. A simulated provider answers, so you need no key and nothing costs money.\n\
             Eight pretend users send about three calls a second; one of them, greta, soon runs out of her budget.\n"
        }
        Backend::OpenAi => {
            "Tollgate is running. OPENAI_API_KEY is set, so your calls go to OpenAI and cost what OpenAI charges.\n\
             Nothing is sent by itself. Each user can spend 2 USD an hour here, each team 20 USD a day.\n"
        }
    };
    let moved = if *addresses == Addresses::DEFAULT {
        String::new()
    } else {
        "\nThe usual ports 8080 and 9090 are not both free, so others were taken.\n".to_owned()
    };
    format!(
        "{what}{moved}\n  \
           Dashboard      http://{admin}/\n  \
           Calls          http://{listen}/v1   (the OpenAI API; the key is {HELPDESK_KEY})\n  \
           Metrics        http://{admin}/metrics\n  \
           Budgets        http://{admin}/api/budgets\n  \
           Configuration  {configuration}\n                 \
                          (change it in an editor: what you save counts within a second)\n\n\
         {to_try}\n\
         Ctrl-C stops it{and_removes}.\n\n",
        configuration = workspace.configuration().display(),
        to_try = to_try(listen),
        and_removes = if workspace.is_temporary() { " and removes its files" } else { "" },
    )
}

fn to_try(listen: SocketAddr) -> String {
    format!(
        r#"Try this in another terminal:

  curl -i http://{listen}/v1/chat/completions -H "Authorization: Bearer {HELPDESK_KEY}" \
    -d '{{"model": "support", "user": "you", "messages": [{{"role": "user", "content": "How do I export my data?"}}]}}'

The x-tollgate-… headers of the reply say which model answered, with which prompt, and which variant of the experiment
"you" belong to. Say "user": "bob" instead: bob is in the other half of the users.

Or from Python (pip install openai):

  from openai import OpenAI
  client = OpenAI(base_url="http://{listen}/v1", api_key="{HELPDESK_KEY}")
  messages = [{{"role": "user", "content": "How do I export my data?"}}]
  for chunk in client.chat.completions.create(model="support", user="you", messages=messages, stream=True):
      print(chunk.choices[0].delta.content or "", end="", flush=True)
"#
    )
}

fn farewell(workspace: &Workspace) -> String {
    let directory = workspace.configuration().parent().unwrap_or(Path::new(""));
    if workspace.is_temporary() {
        "Stopped.\n".to_owned()
    } else {
        format!("Stopped. What was counted and spent is kept in {}.\n", directory.display())
    }
}
