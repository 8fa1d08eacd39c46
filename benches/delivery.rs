//! A million users into each serving store, under a reader who never rests.
//!
//! `cargo bench --bench delivery -- [users]`: real servers on this machine, as the tests start them. The first load goes into an empty
//! store; during the second one connection asks for random users all the time and takes down what it misses.

#[path = "../tests/it/servers.rs"]
mod servers;

use nightmarket::deliver::{self, Ad, Release, Settings, User};
use nightmarket::error::Result;
use nightmarket::platform::server::Server;
use servers::Kind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

const JOB: &str = "shop";
const SEGMENTS: usize = 200;
const ADS_OF_A_SEGMENT: usize = 10;
const ARMS: [&str; 3] = ["champion", "explore", "holdout"];

#[tokio::main]
#[expect(clippy::print_stdout, reason = "a bench prints its table")]
async fn main() -> Result<()> {
    let users = std::env::args().skip(1).find_map(|argument| argument.parse::<usize>().ok()).unwrap_or(1_000_000);
    println!("{users} users, {SEGMENTS} segments of {ADS_OF_A_SEGMENT} ads in {} arms\n", ARMS.len());
    println!("| store | first load, s | users/s | load under a reader, s | users/s | reads | slowest, ms | missing | mixed |");
    println!("|---|---|---|---|---|---|---|---|---|");
    for kind in [Kind::Redis, Kind::Postgres, Kind::MariaDb] {
        let Some(running) = servers::start(kind) else { continue };
        let user = match kind {
            Kind::Redis => None,
            Kind::Postgres => Some("nightmarket".to_owned()),
            Kind::MariaDb => Some("root".to_owned()),
        };
        let server = Server { url: running.url.clone(), user, password: None };
        let first = timed(&server, &release("one", users)).await?;
        let stop = Arc::new(AtomicBool::new(false));
        let reader = tokio::spawn(read(server.clone(), users, stop.clone()));
        let second = timed(&server, &release("two", users)).await?;
        stop.store(true, Ordering::Relaxed);
        let seen = reader.await.expect("the reader ends")?;
        println!(
            "| {kind:?} | {first:.1} | {:.0} | {second:.1} | {:.0} | {} | {:.1} | {} | {} |",
            users as f64 / first,
            users as f64 / second,
            seen.reads,
            seen.slowest_seconds * 1e3,
            seen.missing,
            seen.mixed
        );
    }
    Ok(())
}

/// A table whose every segment is named after its run, so that a mixture shows.
fn release(run: &str, users: usize) -> Release {
    let segments = |user: usize| (0..=user % 3).map(|place| format!("{run}:{}", (user + place) % SEGMENTS)).collect();
    let ad = |row: usize| Ad {
        segment_id: format!("{run}:{}", row / (ARMS.len() * ADS_OF_A_SEGMENT)),
        arm: ARMS[row / ADS_OF_A_SEGMENT % ARMS.len()].to_owned(),
        rank: (row % ADS_OF_A_SEGMENT) as i64 + 1,
        ad_id: format!("ad{}", row % 500),
        propensity: 1.0 / ADS_OF_A_SEGMENT as f64,
        bid_multiplier: Some(1.0),
        frequency_cap: Some(3),
        valid_from: "2026-11-22T16:00:00Z".into(),
        valid_to: "2026-11-23T16:00:00Z".into(),
    };
    Release {
        job: JOB.into(),
        run: run.into(),
        generation: 1,
        policy_version: format!("shop-{run}"),
        may_stay: ["one", "two"].map(str::to_owned).to_vec(),
        users: (0..users).map(|user| User { user_id: name(user), segments: segments(user) }).collect(),
        ads: (0..SEGMENTS * ARMS.len() * ADS_OF_A_SEGMENT).map(ad).collect(),
    }
}

fn name(user: usize) -> String {
    format!("{user:032x}")
}

/// Seconds of a load, its flip included.
async fn timed(server: &Server, release: &Release) -> Result<f64> {
    let started = Instant::now();
    deliver::deliver(server, &Settings::default(), release, false).await?;
    Ok(started.elapsed().as_secs_f64())
}

#[derive(Default)]
struct Seen {
    reads: u64,
    slowest_seconds: f64,
    missing: u64,
    mixed: u64,
}

/// Asks for one user after the other until told to stop, as an ad server does: the pointer first, then the user.
async fn read(server: Server, users: usize, stop: Arc<AtomicBool>) -> Result<Seen> {
    let mut shelf = deliver::open(&server, &Settings::default()).await?;
    let mut seen = Seen::default();
    while !stop.load(Ordering::Relaxed) {
        // A full period: 7919 is prime and no divisor of a round number.
        let user = (seen.reads as usize * 7919) % users;
        let started = Instant::now();
        let run = shelf.current(JOB).await?.unwrap_or_default();
        let segments = shelf.segments_of(JOB, &run, &name(user)).await?;
        seen.slowest_seconds = seen.slowest_seconds.max(started.elapsed().as_secs_f64());
        seen.reads += 1;
        seen.missing += u64::from(segments.len() != user % 3 + 1);
        seen.mixed += u64::from(segments.iter().any(|segment| !segment.starts_with(&format!("{run}:"))));
    }
    Ok(seen)
}
