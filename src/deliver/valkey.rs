//! Valkey and Redis.
//!
//! ```text
//! nm:{job}:current                run that serves                    GET it first
//! nm:{job}:{run}:user:{user_id}   JSON list of segments, the one served first
//! nm:{job}:{run}:segment:{id}     JSON list of its ads in every arm
//! nm:{job}:{run}:meta             JSON: generation, policy version, segments; written last
//! ```
//!
//! A reader takes the pointer, then a key of that run; the run before stays until its time to live ends, so that a reader between
//! the two misses nothing. Redis has no lock of ours: two loads of the same run write the same bytes, and the pointer decides.

use super::{Ad, Release, Shelf};
use crate::error::{Context, Error, Kind, Result};
use crate::platform::server::{PASSWORD_VARIABLE, Server, USER_VARIABLE};
use async_trait::async_trait;
use redis::aio::MultiplexedConnection;
use redis::{AsyncCommands, AsyncConnectionConfig, ErrorKind, RedisError, Script};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub(super) struct Valkey {
    connection: MultiplexedConnection,
    ttl_seconds: u64,
}

#[derive(Serialize, Deserialize)]
struct Meta {
    generation: u64,
    policy_version: String,
    users: u64,
    segments: BTreeSet<String>,
}

/// Keys a round trip: large enough that the wire is busy, small enough to stay a few hundred KiB.
const BATCH: usize = 4_096;
const PATIENCE: Duration = Duration::from_secs(30);

/// Sets the pointer if it is what we saw.
const FLIP: &str = "
if (redis.call('GET', KEYS[1]) or '') == ARGV[1] then
  redis.call('SET', KEYS[1], ARGV[2])
  return 1
end
return 0";

impl Valkey {
    pub async fn connect(server: &Server, ttl_hours: u64) -> Result<Self> {
        let client = redis::Client::open(server.with_credentials()?).map_err(failed)?;
        let patience = AsyncConnectionConfig::new().set_connection_timeout(Some(PATIENCE)).set_response_timeout(Some(PATIENCE));
        let connection = client.get_multiplexed_async_connection_with_config(&patience).await.map_err(failed)?;
        Ok(Self { connection, ttl_seconds: ttl_hours * 3600 })
    }

    async fn set_all(&mut self, entries: Vec<(String, String)>) -> Result<()> {
        let mut pipe = redis::pipe();
        for (key, value) in entries {
            pipe.set_ex(key, value, self.ttl_seconds).ignore();
        }
        // Each write is answered; one that failed fails the batch.
        pipe.query_async::<()>(&mut self.connection).await.map_err(failed)
    }
}

#[async_trait]
impl Shelf for Valkey {
    async fn lock(&mut self, _job: &str) -> Result<()> {
        Ok(())
    }

    async fn unlock(&mut self, _job: &str) -> Result<()> {
        Ok(())
    }

    async fn current(&mut self, job: &str) -> Result<Option<String>> {
        self.connection.get(pointer(job)).await.map_err(failed)
    }

    async fn holds(&mut self, _release: &Release) -> Result<bool> {
        // Written again, its time to live begins again: a table that serves for many nights must not run out.
        Ok(false)
    }

    async fn load(&mut self, release: &Release) -> Result<()> {
        let prefix = prefix(&release.job, &release.run);
        for users in release.users.chunks(BATCH) {
            let mut entries = Vec::with_capacity(users.len());
            for user in users {
                entries.push((format!("{prefix}:user:{}", user.user_id), serde_json::to_string(&user.segments)?));
            }
            self.set_all(entries).await?;
        }
        let mut by_segment: BTreeMap<&str, Vec<&Ad>> = BTreeMap::new();
        release.ads.iter().for_each(|ad| by_segment.entry(&ad.segment_id).or_default().push(ad));
        let mut entries = Vec::new();
        for (id, ads) in &by_segment {
            entries.push((format!("{prefix}:segment:{id}"), serde_json::to_string(ads)?));
        }
        self.set_all(entries).await?;
        let meta = Meta {
            generation: release.generation,
            policy_version: release.policy_version.clone(),
            users: release.users.len() as u64,
            segments: by_segment.keys().map(|id| (*id).to_owned()).collect(),
        };
        self.set_all(vec![(format!("{prefix}:meta"), serde_json::to_string(&meta)?)]).await
    }

    async fn flip(&mut self, release: &Release, from: Option<&str>) -> Result<bool> {
        let script = Script::new(FLIP);
        let mut call = script.key(pointer(&release.job));
        call.arg(from.unwrap_or_default()).arg(&release.run);
        call.invoke_async(&mut self.connection).await.map_err(failed)
    }

    async fn retire(&mut self, release: &Release, _before: Option<&str>) -> Result<()> {
        // What may stay is left to its time to live: another load may be writing it.
        let job = &release.job;
        let kept: Vec<String> = release.may_stay.iter().chain([&release.run]).map(|run| format!("{}:", prefix(job, run))).collect();
        let pointer = pointer(job);
        let stays = |key: &String| *key == pointer || kept.iter().any(|kept| key.starts_with(kept));
        let mut cursor = 0_u64;
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(format!("nm:{job}:*")).arg("COUNT").arg(BATCH);
            let (next, keys): (u64, Vec<String>) = scan.query_async(&mut self.connection).await.map_err(failed)?;
            let gone: Vec<String> = keys.into_iter().filter(|key| !stays(key)).collect();
            if !gone.is_empty() {
                self.connection.unlink::<_, ()>(gone).await.map_err(failed)?;
            }
            cursor = next;
            if cursor == 0 {
                return Ok(());
            }
        }
    }

    async fn segments_of(&mut self, job: &str, run: &str, user: &str) -> Result<Vec<String>> {
        let found: Option<String> = self.connection.get(format!("{}:user:{user}", prefix(job, run))).await.map_err(failed)?;
        found.map_or(Ok(Vec::new()), |text| serde_json::from_str(&text).context("a user's record"))
    }

    async fn ads(&mut self, job: &str, run: &str) -> Result<Vec<Ad>> {
        let prefix = prefix(job, run);
        let meta: Option<String> = self.connection.get(format!("{prefix}:meta")).await.map_err(failed)?;
        let Some(meta) = meta else { return Ok(Vec::new()) };
        let meta: Meta = serde_json::from_str(&meta).context("the run's record")?;
        let mut ads = Vec::new();
        for id in &meta.segments {
            let found: Option<String> = self.connection.get(format!("{prefix}:segment:{id}")).await.map_err(failed)?;
            ads.extend(found.map_or(Ok(Vec::new()), |text| serde_json::from_str::<Vec<Ad>>(&text)).context("a segment's record")?);
        }
        Ok(ads)
    }
}

fn pointer(job: &str) -> String {
    format!("nm:{job}:current")
}

fn prefix(job: &str, run: &str) -> String {
    format!("nm:{job}:{run}")
}

fn failed(error: RedisError) -> Error {
    match error.kind() {
        _ if [Some("NOAUTH"), Some("NOPERM"), Some("WRONGPASS")].contains(&error.code()) => {
            Error::usage(format_args!("the store refused us: {error}"))
                .action(format_args!("set {USER_VARIABLE} and {PASSWORD_VARIABLE} and run again"))
        }
        ErrorKind::AuthenticationFailed => {
            Error::usage(format_args!("the store refused us: {error}")).action(format_args!("set {PASSWORD_VARIABLE} and run again"))
        }
        ErrorKind::InvalidClientConfig => Error::usage(error),
        _ => Error::new(Kind::Transient, error).action("see that the store is up, and run again; what served before still serves"),
    }
}
