#[derive(clap::Args)]
pub struct Demo {}
impl Demo { pub async fn run(self) -> anyhow::Result<std::process::ExitCode> { 
 let s = crate::testbed::supabase::Supabase::start()?;
 s.create("demo").await?;
 crate::store::migrate(&crate::store::Database::parse(&s.url("demo")).unwrap()).await?;
 println!("{}", s.url("demo"));
 tokio::signal::ctrl_c().await?;
 Ok(std::process::ExitCode::SUCCESS) } }
