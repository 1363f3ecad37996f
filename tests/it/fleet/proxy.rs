//! The fault proxy does what its modes say: what stands on it would be worth nothing otherwise.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::{Instant, timeout},
};

use crate::support::{
    proxy::{Mode, Proxy},
    soon,
};

/// Answers whatever is said with the same.
async fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                let _ended = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    });
    port
}

async fn say(proxy: &Proxy, words: &str) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", proxy.port)).await.unwrap();
    stream.write_all(words.as_bytes()).await.unwrap();
    stream
}

async fn hear(stream: &mut TcpStream, length: usize) -> String {
    let mut bytes = vec![0; length];
    soon("bytes", stream.read_exact(&mut bytes)).await.unwrap();
    String::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn each_mode_does_what_it_says_to_connections_that_there_are_and_to_new_ones() {
    let proxy = Proxy::before(echo().await).await;
    let mut early = say(&proxy, "hello").await;
    assert_eq!(hear(&mut early, 5).await, "hello");

    let begun = Instant::now();
    proxy.set(Mode::Delay(Duration::from_millis(30)));
    early.write_all(b"later").await.unwrap();
    assert_eq!(hear(&mut early, 5).await, "later");
    assert!(begun.elapsed() >= Duration::from_millis(60), "there and back");

    proxy.set(Mode::Drip(Duration::from_millis(5)));
    let begun = Instant::now();
    early.write_all(b"drops").await.unwrap();
    assert_eq!(hear(&mut early, 5).await, "drops");
    assert!(begun.elapsed() >= Duration::from_millis(25));

    proxy.set(Mode::Truncate(3));
    let mut said = Vec::new();
    soon("the end", say(&proxy, "truncated").await.read_to_end(&mut said)).await.unwrap();
    assert_eq!(said, b"tru");

    proxy.set(Mode::BlackHole);
    let mut lost = say(&proxy, "lost").await;
    early.write_all(b"lost").await.unwrap();
    let silence = timeout(Duration::from_millis(50), lost.read_u8()).await;
    assert!(silence.is_err(), "{silence:?}");
    proxy.set(Mode::Pass);
    for mut stream in [early, lost] {
        assert!(soon("a reset", stream.read_u8()).await.is_err(), "bytes are missing: it cannot go on");
    }

    let mut whole = say(&proxy, "whole").await;
    assert_eq!(hear(&mut whole, 5).await, "whole");
    proxy.set(Mode::Drop);
    assert_eq!(soon("the end", whole.read(&mut [0])).await.unwrap(), 0, "closed in order");
    proxy.set(Mode::Cut);
    let mut refused = TcpStream::connect(("127.0.0.1", proxy.port)).await.unwrap();
    assert!(soon("a reset", refused.read_u8()).await.is_err());
    assert!(proxy.connection_count() >= 5);
}

#[tokio::test]
async fn what_leads_elsewhere_resets_who_was_led_there_before() {
    let (proxy, elsewhere) = (Proxy::before(echo().await).await, echo().await);
    let mut before = say(&proxy, "here").await;
    assert_eq!(hear(&mut before, 4).await, "here");

    proxy.lead_to(elsewhere);

    assert!(soon("a reset", before.read_u8()).await.is_err());
    assert_eq!(hear(&mut say(&proxy, "there").await, 5).await, "there");
}
