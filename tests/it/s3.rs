//! The night on an S3 store, served on 127.0.0.1 by s3s: the same bytes as on local disk, and one commit though two runs race.

use crate::shop::{DATE, SECRET, Shop, block_on, copy};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use nightmarket::platform::storage::{Created, Store};
use s3s::service::S3ServiceBuilder;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::Mutex;

/// Serves a folder, one bucket a subfolder, until the runtime ends; gives the endpoint.
async fn serve(root: &Path) -> String {
    let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(root).expect("a folder to serve"));
    builder.set_auth(s3s::auth::SimpleAuth::from_single("key", "secret"));
    let service = builder.build();
    // s3s-fs looks and then writes: its conditional PUT becomes atomic only one at a time.
    let puts = Arc::new(Mutex::new(()));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let endpoint = format!("http://{}", listener.local_addr().expect("bound"));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // Answers are small: waiting for more to send costs 40 ms each.
            stream.set_nodelay(true).expect("a socket takes the option");
            let (service, puts) = (service.clone(), puts.clone());
            tokio::spawn(async move {
                let answer = service_fn(move |request| {
                    let (service, puts) = (service.clone(), puts.clone());
                    async move {
                        let _one_at_a_time = if request.method() == hyper::Method::PUT { Some(puts.lock().await) } else { None };
                        hyper::service::Service::call(&service, request).await
                    }
                });
                // A client that hangs up is its own affair.
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
            });
        }
    });
    endpoint
}

fn night(shop: &Shop, endpoint: &str) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nightmarket"));
    command.args(["run", &shop.spec_file().display().to_string(), "--date", &DATE.to_string()]);
    command.args(["--raw", "s3://lake/raw", "--out", "s3://lake/out", "--log", "error"]);
    command.envs([("AWS_ENDPOINT", endpoint), ("AWS_ALLOW_HTTP", "true"), ("AWS_REGION", "us-east-1")]);
    command.envs([("AWS_ACCESS_KEY_ID", "key"), ("AWS_SECRET_ACCESS_KEY", "secret"), ("NIGHTMARKET_PSEUDONYM_KEY", SECRET)]);
    command.stdout(std::process::Stdio::null());
    command.spawn().expect("starts")
}

#[test]
fn on_s3_the_night_publishes_the_same_bytes_and_two_runs_commit_once() {
    let shop = Shop::served();
    let bucket = tempfile::TempDir::new().expect("a temporary folder");
    copy(&shop.root.join("raw"), &bucket.path().join("lake/raw"));
    std::fs::create_dir_all(bucket.path().join("lake/out")).expect("a folder");
    let codes = block_on(async {
        let endpoint = serve(bucket.path()).await;
        let (mut one, mut two) = (night(&shop, &endpoint), night(&shop, &endpoint));
        tokio::task::spawn_blocking(move || [one.wait().expect("ends").code(), two.wait().expect("ends").code()]).await.expect("waited")
    });
    assert!(codes.contains(&Some(0)) && codes.iter().all(|code| matches!(code, Some(0 | 60))), "{codes:?}");
    let out = Store::open(&bucket.path().join("lake/out").display().to_string()).expect("a store");
    let commits = block_on(nightmarket::publish::history(&out)).expect("reads");
    let local = shop.history();
    assert_eq!(commits, local, "one commit, the same as on local disk");
    for name in ["segments", "user_segments", "segment_ads", "shadow_ads"] {
        let path = format!("out/{}/{name}.parquet", local[0].tables);
        let (here, there) = (std::fs::read(shop.root.join(&path)), std::fs::read(bucket.path().join("lake").join(&path)));
        assert_eq!(here.expect("a table"), there.expect("a table"), "{name}");
    }
}

#[test]
fn of_ten_writers_one_creates_the_object() {
    let folder = tempfile::TempDir::new().expect("a temporary folder");
    let store = Store::open(&folder.path().display().to_string()).expect("a store");
    let won = block_on(async {
        let writers = (0..10).map(|writer| {
            let store = store.clone();
            tokio::spawn(async move { store.create("commits/1.json", format!("{writer}").into()).await.expect("answers") })
        });
        futures::future::join_all(writers).await.into_iter().filter(|created| matches!(created, Ok(Created::Ours))).count()
    });
    assert_eq!(won, 1);
}
