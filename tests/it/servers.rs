//! Real servers for tests: those of this machine, else Debian's packages unpacked into .servers/, on a free port of 127.0.0.1. Where
//! there is neither, a test says so and is skipped.

use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;
use tempfile::TempDir;
use url::Url;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Redis,
    Postgres,
    MariaDb,
}

pub struct Running {
    pub kind: Kind,
    pub url: Url,
    program: PathBuf,
    folder: TempDir,
    port: u16,
    /// Whether it speaks TLS, as `localhost`, with the certificate of testdata/tls.
    encrypted: bool,
    child: Option<Child>,
}

const UNPACKED: &str = ".servers";
/// PostgreSQL refuses to be root, so root is nobody for it.
const NOBODY: u32 = 65534;

impl Kind {
    fn program(self) -> Option<PathBuf> {
        let names: &[&str] = match self {
            Kind::Redis => &["valkey-server", "redis-server"],
            Kind::Postgres => &["postgres"],
            Kind::MariaDb => &["mariadbd", "mysqld"],
        };
        let mut folders: Vec<PathBuf> = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
        let root = std::env::current_dir().expect("a working directory").join(UNPACKED);
        for root in [Path::new("/"), root.as_path()] {
            folders.extend(["usr/sbin", "usr/bin", "usr/lib/postgresql/15/bin"].map(|folder| root.join(folder)));
        }
        names.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name))).find(|path| path.exists())
    }

    fn packages(self) -> &'static [&'static str] {
        match self {
            Kind::Redis => {
                &["redis-server", "redis-tools", "libjemalloc2", "liblua5.1-0", "liblzf1", "libatomic1", "lua-bitop", "lua-cjson"]
            }
            Kind::Postgres => &["postgresql-15", "postgresql-client-15", "libpq5", "libllvm14"],
            Kind::MariaDb => &["mariadb-server-core", "libsnappy1v5", "liburing2", "libnuma1", "libpmem1", "libndctl6", "libfmt9"],
        }
    }

    /// The program, fetched once when it is not installed.
    fn installed(self) -> Option<PathBuf> {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _one_at_a_time = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(program) = self.program() {
            return Some(program);
        }
        let packed = TempDir::new().expect("a temporary folder");
        let fetched =
            Command::new("apt-get").arg("download").args(self.packages()).current_dir(packed.path()).stderr(Stdio::null()).output();
        fetched.ok().filter(|output| output.status.success())?;
        for package in std::fs::read_dir(packed.path()).expect("a folder") {
            Command::new("dpkg").arg("-x").arg(package.expect("a package").path()).arg(UNPACKED).status().ok()?;
        }
        self.program()
    }
}

/// A server of a kind with an empty store; `None`, and a line that says so, where there is none to start.
pub fn start(kind: Kind) -> Option<Running> {
    start_as(kind, false)
}

/// As [`start`], over TLS: its address asks for a certificate that names `localhost`.
#[allow(dead_code, reason = "the bench is the same file")]
pub fn start_encrypted(kind: Kind) -> Option<Running> {
    start_as(kind, true)
}

fn start_as(kind: Kind, encrypted: bool) -> Option<Running> {
    let Some(program) = kind.installed() else {
        eprintln!("SKIPPED: no {kind:?} server is installed, and none could be fetched");
        return None;
    };
    let folder = TempDir::new().expect("a temporary folder");
    let port = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound").port();
    let url = match (kind, encrypted) {
        (Kind::Redis, false) => format!("redis://127.0.0.1:{port}/"),
        (Kind::Redis, true) => format!("rediss://localhost:{port}/"),
        (Kind::Postgres, false) => format!("postgres://127.0.0.1:{port}/postgres"),
        (Kind::Postgres, true) => format!("postgres://localhost:{port}/postgres?sslmode=verify-full"),
        (Kind::MariaDb, false) => format!("mysql://127.0.0.1:{port}/nightmarket"),
        (Kind::MariaDb, true) => format!("mysql://localhost:{port}/nightmarket?ssl-mode=VERIFY_IDENTITY"),
    };
    let mut server = Running { kind, url: url.parse().expect("a URL"), program, folder, port, encrypted, child: None };
    server.prepare();
    server.start();
    Some(server)
}

impl Running {
    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// A command in whose eyes the unpacked libraries are installed, as a user that the server accepts.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        let libraries = std::env::current_dir().expect("a working directory").join(UNPACKED).join("usr/lib/x86_64-linux-gnu");
        if program.starts_with(std::env::current_dir().expect("a working directory")) {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        if self.kind == Kind::Postgres && is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command.current_dir(self.folder.path()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// A file of the server's certificate, where the server may read it.
    fn certificate(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn prepare(&self) {
        for name in ["server.pem", "server.key"].iter().filter(|_| self.encrypted) {
            let file = self.certificate(name);
            std::fs::copy(Path::new("testdata/tls").join(name), &file).expect("copied");
            // PostgreSQL takes no key that others may read.
            std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("kept secret");
            if self.kind == Kind::Postgres && is_root() {
                std::os::unix::fs::chown(&file, Some(NOBODY), Some(NOBODY)).expect("owned by nobody");
            }
        }
        match self.kind {
            Kind::Redis => {}
            Kind::Postgres => {
                if is_root() {
                    std::os::unix::fs::chown(self.folder.path(), Some(NOBODY), Some(NOBODY)).expect("owned by nobody");
                }
                let real = std::fs::canonicalize(&self.program).expect("a program");
                let mut init = self.command(&real.with_file_name("initdb"));
                init.args(["-U", "nightmarket", "--auth=trust", "--no-sync", "-D"]).arg(self.data());
                assert!(init.status().expect("starts").success(), "initdb");
            }
            Kind::MariaDb => {
                std::fs::create_dir(self.data()).expect("a folder");
                let sql = self.folder.path().join("init.sql");
                std::fs::write(&sql, "CREATE DATABASE nightmarket;\n").expect("written");
                let mut init = self.mariadb();
                init.arg("--bootstrap").stdin(std::fs::File::open(sql).expect("a file"));
                assert!(init.status().expect("starts").success(), "mariadbd --bootstrap");
            }
        }
    }

    fn mariadb(&self) -> Command {
        let mut command = self.command(&self.program);
        let usr = self.program.parent().and_then(Path::parent).expect("below usr");
        command.args(["--no-defaults", "--user=root", "--skip-grant-tables", "--innodb-log-file-size=8M"]);
        command.arg(format!("--basedir={}", usr.display())).arg(format!("--datadir={}", self.data().display()));
        command
    }

    /// Starts it, again after a kill, over the same data; waits until it answers.
    pub fn start(&mut self) {
        let port = self.port.to_string();
        let (certificate, key) = (self.certificate("server.pem"), self.certificate("server.key"));
        let (certificate, key) = (certificate.display(), key.display());
        let mut command = match self.kind {
            Kind::Redis => {
                let mut command = self.command(&self.program);
                let listen = if self.encrypted { "--tls-port" } else { "--port" };
                command.args([listen, &port, "--bind", "127.0.0.1", "--appendonly", "yes", "--save", "", "--dir", "."]);
                if self.encrypted {
                    command.args(["--port", "0", "--tls-auth-clients", "no", "--tls-cert-file"]).arg(format!("{certificate}"));
                    command.arg("--tls-key-file").arg(format!("{key}"));
                }
                command
            }
            Kind::Postgres => {
                let mut command = self.command(&self.program);
                command.arg("-D").arg(self.data()).args(["-p", &port, "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]);
                command.arg("-k").arg(self.folder.path());
                if self.encrypted {
                    command.args(["-c", "ssl=on", "-c", &format!("ssl_cert_file={certificate}"), "-c", &format!("ssl_key_file={key}")]);
                }
                command
            }
            Kind::MariaDb => {
                let mut command = self.mariadb();
                command.arg(format!("--port={port}")).args(["--bind-address=127.0.0.1", "--skip-networking=0"]);
                command.arg(format!("--socket={}", self.folder.path().join("s").display()));
                if self.encrypted {
                    command.args([format!("--ssl-cert={certificate}"), format!("--ssl-key={key}")]);
                }
                command
            }
        };
        self.child = Some(command.spawn().expect("starts"));
        for _ in 0..600 {
            if TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("{:?} does not answer", self.kind);
    }

    /// Ends it at once, in the middle of whatever it does.
    pub fn kill(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        // PostgreSQL's processes each notice only when told: SIGQUIT is its immediate shutdown.
        let signal = if self.kind == Kind::Postgres { "-QUIT" } else { "-KILL" };
        let _ = Command::new("kill").arg(signal).arg(child.id().to_string()).status();
        child.wait().expect("reaped");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

fn is_root() -> bool {
    let own = std::fs::metadata("/proc/self").map(|own| std::os::unix::fs::MetadataExt::uid(&own));
    own.is_ok_and(|uid| uid == 0)
}
