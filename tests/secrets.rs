//! What leaves the program, and to whom: the password of the database, and Clerk's secret key.

use crate::support::{Project, SECRET, database, supabase, unique};
use futures_util::{StreamExt as _, stream};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use testkit::clerk::Clerk;
use testkit::wait::PATIENCE;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

const PASSWORD: &str = "PASSWORD-CANARY";
const KEY: &str = "sk_live_KEYCANARY";
/// Loopback, but under a name that is not known to be: what a name leads to may change.
const ELSEWHERE: &str = "127.1";

/// Everything that logs in to the database.
const COMMANDS: &[&[&str]] = &[
    &["migrate"],
    &["serve"],
    &["reconcile"],
    &["refresh", "user_1"],
    &["doctor"],
    &["policy", "check"],
    &["policy", "print", "documents", "--organization-column", "organization_id"],
    &["dead-letters", "list"],
    &["prune"],
    &["purge", "--older-than", "90d"],
];

/// Stands between us and a database: takes whatever is said, and asks for the password in clear.
struct Eavesdropper {
    address: SocketAddr,
    heard: Arc<Mutex<Vec<u8>>>,
}

impl Eavesdropper {
    /// `tls`: with which certificate it encrypts; `None`: it refuses to.
    async fn start(tls: Option<TlsAcceptor>) -> Eavesdropper {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let heard: Arc<Mutex<Vec<u8>>> = Arc::default();
        let hears = Arc::clone(&heard);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (tls, hears) = (tls.clone(), Arc::clone(&hears));
                tokio::spawn(async move {
                    let mut request = [0; 8];
                    stream.read_exact(&mut request).await?;
                    hears.lock().unwrap().extend_from_slice(&request);
                    let Some(tls) = tls else {
                        stream.write_all(b"N").await?;
                        return listen(stream, &hears).await;
                    };
                    stream.write_all(b"S").await?;
                    listen(tls.accept(stream).await?, &hears).await
                });
            }
        });
        Eavesdropper { address, heard }
    }

    fn heard(&self) -> String {
        String::from_utf8_lossy(&self.heard.lock().unwrap()).into_owned()
    }

    fn url(&self, host: &str, parameters: &str) -> String {
        format!("postgres://postgres:{PASSWORD}@{host}:{}/postgres?{parameters}", self.address.port())
    }
}

async fn listen(mut stream: impl AsyncRead + AsyncWrite + Unpin, hears: &Mutex<Vec<u8>>) -> std::io::Result<()> {
    const CLEARTEXT_PASSWORD: [u8; 9] = [b'R', 0, 0, 0, 8, 0, 0, 0, 3];
    let mut bytes = vec![0; 1024];
    loop {
        let size = stream.read(&mut bytes).await?;
        if size == 0 {
            return Ok(());
        }
        hears.lock().unwrap().extend_from_slice(&bytes[..size]);
        if bytes[0] == b'p' {
            return Ok(());
        }
        stream.write_all(&CLEARTEXT_PASSWORD).await?;
    }
}

/// A certificate for `localhost`, and the file of the authority that signed it.
fn certificate(folder: &Path, name: &str) -> (TlsAcceptor, PathBuf) {
    let mut authority = CertificateParams::new(vec![]).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate =
        CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
    let chain = vec![CertificateDer::from(certificate.der().to_vec())];
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let file = folder.join(name);
    std::fs::write(&file, authority.pem()).unwrap();
    (TlsAcceptor::from(Arc::new(config)), file)
}

/// A folder of the test's own, gone with it.
struct TempFolder(PathBuf);

impl TempFolder {
    fn new() -> TempFolder {
        let folder = std::env::temp_dir().join(format!("clerk-sync-{}-{}", std::process::id(), unique("secrets")));
        std::fs::create_dir(&folder).unwrap();
        TempFolder(folder)
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// All that was said, within a few seconds: `serve` does not end by itself.
async fn run(arguments: &[&str], folder: &Path, variables: &[(&str, &str)]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_clerk-sync"));
    command
        .args(arguments)
        .env_clear()
        .current_dir(folder)
        .env("CLERK_WEBHOOK_SIGNING_SECRET", SECRET)
        .env("CLERK_SECRET_KEY", "sk_test_hidden")
        .env("CLERK_API_URL", "http://127.0.0.1:9")
        .env("LISTEN_ADDR", "127.0.0.1:0")
        .env("OPS_ADDR", "127.0.0.1:0")
        .envs(variables.iter().copied())
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true);
    let child = command.spawn().unwrap();
    let pid = rustix::process::Pid::from_raw(child.id().unwrap().cast_signed()).unwrap();
    if arguments[0] == "serve" {
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(2)).await;
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        });
    }
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await.expect("it ends").unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A command, what it is about, and the database that it is given.
type Run<What> = (&'static [&'static str], What, String);

/// What each of them said. They wait most of the time: so many at once.
async fn run_all<What>(folder: &Path, runs: Vec<Run<What>>) -> Vec<(&'static [&'static str], What, String)> {
    const AT_ONCE: usize = 8;
    let said = async |(command, what, url): Run<What>| {
        let said = run(command, folder, &[("DATABASE_URL", &url)]).await;
        (command, what, said)
    };
    stream::iter(runs).map(said).buffered(AT_ONCE).collect().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_that_refuses_tls_or_shows_a_certificate_of_its_own_hears_nothing_secret() {
    let folder = TempFolder::new();
    let (tls, authority) = certificate(&folder.0, "theirs.crt");
    let (_, other_authority) = certificate(&folder.0, "ours.crt");
    let (refuses, self_signed) = (Eavesdropper::start(None).await, Eavesdropper::start(Some(tls)).await);
    let verified = format!("sslmode=verify-full&sslrootcert={}", other_authority.display());
    let mut runs = Vec::new();
    for command in COMMANDS {
        for listener in [&refuses, &self_signed] {
            for parameters in [verified.as_str(), "sslmode=verify-full", "sslmode=verify-ca"] {
                runs.push((*command, parameters, listener.url("localhost", parameters)));
            }
        }
    }
    for (command, parameters, said) in run_all(&folder.0, runs).await {
        assert!(!said.contains(PASSWORD), "{command:?} {parameters}: {said}");
    }
    for (listener, who) in [(&refuses, "refuses"), (&self_signed, "self-signed")] {
        let heard = listener.heard();
        assert!(!heard.is_empty() && heard.bytes().all(|byte| !byte.is_ascii_alphabetic()), "{who}: {heard:?}");
    }
    // They would hear it, had they been trusted.
    let trusted = format!("sslmode=verify-full&sslrootcert={}", authority.display());
    for (listener, parameters) in
        [(&refuses, "sslmode=prefer"), (&self_signed, "sslmode=require"), (&self_signed, &trusted)]
    {
        listener.heard.lock().unwrap().clear();
        run(&["migrate"], &folder.0, &[("DATABASE_URL", &listener.url("localhost", parameters))]).await;
        assert!(listener.heard().contains(PASSWORD), "{parameters}");
    }
    // A certificate for another name.
    self_signed.heard.lock().unwrap().clear();
    run(&["migrate"], &folder.0, &[("DATABASE_URL", &self_signed.url("127.0.0.1", &trusted))]).await;
    assert!(!self_signed.heard().contains(PASSWORD));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_start_warns_of_a_database_that_is_elsewhere_and_not_verified() {
    let folder = TempFolder::new();
    let nobody = Eavesdropper::start(None).await;
    let weaknesses = [
        ("", "encrypted only if the server offers it"),
        ("sslmode=require", "certificate is not checked"),
        ("sslmode=disable", "is not encrypted"),
    ];
    let runs = weaknesses.iter().flat_map(|&(parameters, weakness)| {
        COMMANDS.iter().map(move |command| (*command, (parameters, weakness), parameters))
    });
    let runs = runs.map(|(command, what, parameters)| (command, what, nobody.url(ELSEWHERE, parameters))).collect();
    for (command, (parameters, weakness), said) in run_all(&folder.0, runs).await {
        assert_eq!(said.matches(weakness).count(), 1, "{command:?} {parameters}: {said}");
        assert!(said.contains("sslmode=verify-full&sslrootcert=FILE") && said.contains("SSL configuration"), "{said}");
        assert!(!said.contains(PASSWORD), "{said}");
        if command[0] == "doctor" {
            assert!(said.contains("FAIL  tls: "), "{said}");
        }
    }
    for (host, parameters) in [("localhost", ""), ("127.0.0.1", "sslmode=disable"), (ELSEWHERE, "sslmode=verify-full")]
    {
        let said = run(&["migrate"], &folder.0, &[("DATABASE_URL", &nobody.url(host, parameters))]).await;
        assert!(!said.contains("can be read on the network"), "{host} {parameters}: {said}");
    }
}

/// Counts those who connect, and answers nothing.
async fn counted() -> (SocketAddr, Arc<Mutex<usize>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let count = Arc::new(Mutex::new(0));
    let counts = Arc::clone(&count);
    tokio::spawn(async move {
        while listener.accept().await.is_ok() {
            *counts.lock().unwrap() += 1;
        }
    });
    (address, count)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_key_goes_nowhere_in_clear_and_through_no_proxy_that_could_read_it() {
    let folder = TempFolder::new();
    let database = database().await;
    let (proxy, asked) = counted().await;
    let (proxy, url) = (format!("http://{proxy}"), database.url());
    let with_key: &[&[&str]] = &[&["serve"], &["reconcile"], &["refresh", "user_1"], &["doctor"]];
    for api in [
        "http://api.example.com",
        "http://10.0.0.1:8080/v1",
        "http://localhost.example.com",
        "https://user:pass@api.example.com",
    ] {
        for command in with_key {
            let variables = [
                ("DATABASE_URL", url.as_str()),
                ("CLERK_SECRET_KEY", KEY),
                ("CLERK_API_URL", api),
                ("http_proxy", &proxy),
                ("HTTP_PROXY", &proxy),
            ];
            let said = run(command, &folder.0, &variables).await;
            let problem = if api.starts_with("https") {
                "must not contain a user"
            } else {
                "CLERK_API_URL must begin with https://"
            };
            assert!(
                said.contains(problem) || said.contains(&problem.replace("CLERK_API_URL ", "CLERK_API_URL: ")),
                "{command:?} {api}: {said}"
            );
            assert!(!said.contains(KEY), "{said}");
        }
    }
    // To this machine, and with a key for tests, http is taken; past the proxy.
    let mut clerk = Clerk::new(7, clerk_sync::clock::now().get());
    clerk.create_user("Ada", "Lovelace");
    clerk.secret_key = KEY.to_owned();
    let world = testkit::World::builder().clerk(clerk).start().await.unwrap();
    let url = world.database.url();
    let variables = [
        ("DATABASE_URL", url.as_str()),
        ("CLERK_SECRET_KEY", KEY),
        ("CLERK_API_URL", &world.api.url),
        ("http_proxy", &proxy),
        ("all_proxy", &proxy),
    ];
    let said = run(&["reconcile"], &folder.0, &variables).await;
    assert_eq!(world.database.count("clerk.users").await, 1, "{said}");
    assert_eq!(*asked.lock().unwrap(), 0, "the proxy was asked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_variables_is_read_from_the_working_directory_alone_and_never_one_that_others_may_write() {
    let folder = TempFolder::new();
    let (deep, file) = (folder.0.join("a/b"), folder.0.join("a/b/.env"));
    std::fs::create_dir_all(&deep).unwrap();
    let project = Project::named(unique("project"));
    supabase().create(&project.name).await.unwrap();
    let text = format!("# ours\nDATABASE_URL='{}'\nCLERK_API_URL=http://127.0.0.1:9\n", project.url());
    let migrate = async |variables: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_clerk-sync"));
        let output = command
            .arg("migrate")
            .env_clear()
            .current_dir(&deep)
            .envs(variables.iter().copied())
            .output()
            .await
            .unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    // In a folder above: as if it were not there.
    std::fs::write(folder.0.join(".env"), &text).unwrap();
    let (done, said) = migrate(&[]).await;
    assert!(!done && said.contains("DATABASE_URL is not set") && !said.contains(".env"), "{said}");
    // Of others, by its mode.
    std::fs::write(&file, &text).unwrap();
    for mode in [0o666, 0o664, 0o602] {
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        let (done, said) = migrate(&[]).await;
        assert!(
            !done && said.contains("a/b/.env is ignored: other accounts on this machine have write permission for it"),
            "{mode:o}: {said}"
        );
    }
    // Ours, but for a line.
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(&file, format!("A-B=1\n{text}")).unwrap();
    let (done, said) = migrate(&[]).await;
    assert!(!done && said.contains("a/b/.env is read only up to line 1, which has a name"), "{said}");
    std::fs::write(&file, &text).unwrap();
    let (done, said) = migrate(&[]).await;
    assert!(done && said.contains("a/b/.env is read") && said.contains("CLERK_API_URL is taken from"), "{said}");
    // The environment wins.
    let (done, said) = migrate(&[("DATABASE_URL", "mysql://")]).await;
    assert!(!done && said.contains("must begin with postgres://"), "{said}");
}
