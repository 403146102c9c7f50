//! The simulated Clerk is as hard on its clients as the real one: pages, cursors, ties, refusals, limits, faults.

use reqwest::header::HeaderMap;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use testkit::clerk::{Clerk, Fault, Rule, Server, Shared};

/// October 2025, in ms.
const START: i64 = 1_760_000_000_000;

/// A simulated Clerk, and a client that shows its key.
struct Api {
    clerk: Shared,
    server: Server,
    client: reqwest::Client,
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Value,
}

impl Api {
    async fn of(clerk: Clerk) -> Api {
        let mut headers = HeaderMap::new();
        headers.insert("Authorization", format!("Bearer {}", clerk.secret_key).parse().unwrap());
        headers.insert("Clerk-API-Version", "2026-05-12".parse().unwrap());
        let client =
            reqwest::Client::builder().timeout(Duration::from_secs(20)).default_headers(headers).build().unwrap();
        let clerk = Shared::new(clerk);
        let server = Server::start(clerk.clone(), "127.0.0.1:0".parse().unwrap()).await.unwrap();
        Api { clerk, server, client }
    }

    /// With so many users, organizations and memberships, of which so many share each creation time.
    async fn populated(users: usize, organizations: usize, memberships: usize, tie: usize) -> Api {
        let mut clerk = Clerk::new(1, START);
        clerk.populate(users, organizations, memberships, tie);
        Api::of(clerk).await
    }

    fn request(&self, path: &str) -> reqwest::RequestBuilder {
        self.client.get(format!("{}/v1/{path}", self.server.url))
    }

    async fn get(&self, path: &str) -> Answer {
        answer(self.request(path)).await
    }

    async fn ids(&self, path: &str) -> Vec<String> {
        let answer = self.get(path).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        ids(&answer.body)
    }
}

async fn answer(request: reqwest::RequestBuilder) -> Answer {
    let response = request.send().await.expect("an answer");
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let body = response.text().await.expect("a body");
    Answer { status, headers, body: serde_json::from_str(&body).unwrap_or(Value::String(body)) }
}

fn ids(body: &Value) -> Vec<String> {
    let rows = body.as_array().or_else(|| body["data"].as_array()).expect("a list");
    rows.iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_cursor_names_each_user_once_in_both_directions_whatever_shares_a_creation_time() {
    for tie in [1, 7, 100] {
        let api = Api::populated(100, 0, 0, tie).await;
        let mut walks = Vec::new();
        for order in ["%2Bcreated_at", "-created_at"] {
            let (mut walked, mut page) = (Vec::new(), api.ids(&format!("users?limit=9&order_by={order}")).await);
            while let Some(last) = page.last().cloned() {
                walked.append(&mut page);
                page = api.ids(&format!("users?limit=9&order_by={order}&starting_after={last}")).await;
            }
            assert_eq!(walked.iter().collect::<BTreeSet<_>>().len(), 100, "tie {tie}");
            assert_eq!(walked.len(), 100, "tie {tie}");
            walks.push(walked);
        }
        walks[1].reverse();
        assert_eq!(walks[0], walks[1]);
        // Ids sort by the second of their making; within it they do not.
        assert_eq!(walks[0].is_sorted(), tie == 1, "the order is not that of ids");
    }
}

#[tokio::test]
async fn an_offset_skips_a_row_when_one_before_it_is_deleted_meanwhile_and_a_cursor_does_not() {
    let api = Api::populated(20, 0, 0, 1).await;
    let all = api.ids("users?limit=20").await;
    api.clerk.before_each(|clerk, request| {
        if request.query.contains("offset=10") || request.query.contains("starting_after") {
            let newest = clerk.users.values().max_by_key(|user| user.created_at).unwrap().id.clone();
            clerk.delete_user(&newest);
        }
    });
    assert_eq!(api.ids("users?limit=10").await, all[..10]);
    assert_eq!(api.ids("users?limit=10&offset=10").await, all[11..], "row 10 is in no page");
    assert_eq!(api.ids(&format!("users?limit=10&starting_after={}", all[9])).await, all[10..]);
    let asked: Vec<String> = api.clerk.requests().into_iter().map(|request| request.query).collect();
    assert_eq!(asked[1..3], ["limit=10", "limit=10&offset=10"]);
}

#[tokio::test]
async fn every_list_is_newest_first_and_ten_rows_long_unless_it_is_asked_otherwise() {
    let api = Api::populated(30, 12, 40, 1).await;
    for list in ["users", "organizations", "organization_memberships"] {
        let newest = api.get(list).await.body;
        let newest = newest.as_array().or_else(|| newest["data"].as_array()).unwrap().clone();
        assert_eq!(newest.len(), 10, "{list}");
        assert!(newest.is_sorted_by_key(|row| -row["created_at"].as_i64().unwrap()), "{list}");
        let mut oldest = api.ids(&format!("{list}?order_by=created_at&limit=500")).await;
        oldest.reverse();
        assert_eq!(api.ids(&format!("{list}?limit=500")).await, oldest, "{list}");
        assert_eq!(api.ids(&format!("{list}?limit=5&offset=7")).await, oldest[7..12], "{list}");
    }
    let by = |order: &'static str| format!("users?limit=30&order_by={order}");
    let names = |body: Value| -> Vec<String> {
        body.as_array().unwrap().iter().map(|row| row["first_name"].as_str().unwrap().to_owned()).collect()
    };
    assert!(names(api.get(&by("first_name")).await.body).is_sorted());
    assert!(names(api.get(&by("-first_name")).await.body).is_sorted_by(|a, b| a >= b));
    let touched = api.ids("users?limit=1&offset=20").await.remove(0);
    api.clerk.lock().update_user(&touched, |user| user.last_name = "Last".to_owned());
    assert_eq!(api.ids("users?order_by=-updated_at&limit=1").await, [touched]);
}

#[tokio::test]
async fn filters_leave_what_they_name() {
    let api = Api::populated(40, 4, 20, 1).await;
    let all = api.ids("users?limit=500").await;
    let [a, b, c] = [0, 1, 2].map(|index| all[index].clone());
    assert_eq!(api.ids(&format!("users?user_id={a}&user_id=%2B{b}&user_id=user_nobody")).await, all[..2]);
    assert_eq!(api.ids(&format!("users?user_id[]={c}")).await, all[2..3]);
    assert_eq!(api.ids(&format!("users?limit=500&user_id=-{a}")).await, all[1..]);
    {
        let mut clerk = api.clerk.lock();
        clerk.now += 1_000;
        clerk.ban_user(&b);
        clerk.update_user(&c, |user| {
            user.phone_number = Some("+15550100123".to_owned());
            user.username = Some("cleo".to_owned());
            user.external_id = Some("42".to_owned());
        });
    }
    assert_eq!(api.ids("users?banned=true").await, all[1..2]);
    assert_eq!(api.ids("users?banned=false&limit=500").await.len(), 39);
    for query in ["phone_number=%2B15550100123", "username=cleo", "external_id=42", "username_query=CLE"] {
        assert_eq!(api.ids(&format!("users?{query}")).await, all[2..3], "{query}");
    }
    let created_at = api.get(&format!("users/{b}")).await.body["created_at"].as_i64().unwrap();
    assert_eq!(api.ids(&format!("users?created_at_after={created_at}")).await, all[..1]);
    assert_eq!(api.ids(&format!("users?created_at_before={created_at}&limit=500")).await, all[2..]);

    let organization = api.ids("organizations?order_by=name").await.remove(0);
    let members = api.get(&format!("organizations/{organization}/memberships")).await.body;
    assert_eq!(members["total_count"], 5);
    let member = members["data"][0]["public_user_data"]["user_id"].as_str().unwrap().to_owned();
    let one = api.get(&format!("organizations/{organization}/memberships?user_id={member}&limit=1")).await.body;
    assert_eq!((&one["data"][0], &one["total_count"]), (&members["data"][0], &json!(1)));
    let admins = api.get(&format!("organizations/{organization}/memberships?role=org:admin")).await.body;
    assert_eq!(admins["total_count"], 1);
    assert_eq!(api.ids(&format!("users?organization_id={organization}")).await.len(), 5);
    let count = api.get(&format!("users/count?organization_id={organization}")).await.body;
    assert_eq!(count, json!({ "object": "total_count", "total_count": 5 }));

    let mine = api.get(&format!("users/{member}/organization_memberships")).await.body;
    assert_eq!(mine["data"][0]["public_user_data"]["user_id"], member.as_str());
    assert_eq!(ids(&api.get(&format!("organizations?user_id={member}")).await.body).len(), mine["total_count"]);
    let counted =
        api.get(&format!("organizations?organization_id={organization}&include_members_count=true")).await.body;
    assert_eq!((&counted["data"][0]["members_count"], &counted["total_count"]), (&json!(5), &json!(1)));
    let by_slug = api.get("organizations/company-0").await.body;
    assert_eq!(by_slug["id"], organization.as_str());
    assert!(by_slug.get("members_count").is_none());
}

#[tokio::test]
async fn what_is_no_question_is_refused_in_clerks_words() {
    let api = Api::populated(2, 1, 2, 1).await;
    let many = format!("users?{}", "user_id=user_x&".repeat(101));
    let cases = [
        ("users?limit=0", 422, "form_param_value_invalid", "limit"),
        ("users?limit=501", 422, "form_param_value_invalid", "limit"),
        ("organizations?offset=-1", 422, "form_param_value_invalid", "offset"),
        ("users?order_by=locked", 422, "form_param_value_invalid", "order_by"),
        ("users?order_by=+created_at", 422, "form_param_value_invalid", "order_by"),
        ("organization_memberships?order_by=updated_at", 422, "form_param_value_invalid", "order_by"),
        ("organization_memberships?user_id=user_x", 422, "form_param_unknown", "user_id"),
        ("users?updated_at_after=1", 422, "form_param_unknown", "updated_at_after"),
        ("users?starting_after=user_gone", 422, "form_param_value_invalid", "starting_after"),
        ("users?banned=perhaps", 422, "form_param_value_invalid", "banned"),
        (many.as_str(), 422, "form_param_value_invalid", "user_id"),
        ("users/user_gone", 404, "resource_not_found", ""),
        ("organizations/org_gone", 404, "resource_not_found", ""),
        ("organizations/org_gone/memberships", 404, "resource_not_found", ""),
        ("users?__clerk_api_version=2026-05-12", 400, "api_version_invalid", ""),
        ("nothing", 404, "resource_not_found", ""),
    ];
    for (path, status, code, parameter) in cases {
        let answer = api.get(path).await;
        let error = &answer.body["errors"][0];
        assert_eq!((answer.status, error["code"].as_str().unwrap()), (status, code), "{path}");
        assert!(error["message"].is_string() && error["long_message"].is_string(), "{path}");
        assert_eq!(error["meta"]["param_name"].as_str().unwrap_or_default(), parameter, "{path}");
        assert_eq!(answer.body["clerk_trace_id"].as_str().unwrap().len(), 32, "{path}");
    }
    let user = api.ids("users?limit=1").await.remove(0);
    for with in ["order_by=-updated_at", "offset=1"] {
        let answer = api.get(&format!("users?starting_after={user}&{with}")).await;
        assert_eq!((answer.status, &answer.body["errors"][0]["meta"]["param_name"]), (422, &json!("starting_after")));
    }
}

#[tokio::test]
async fn only_the_right_key_and_a_known_version_are_answered_and_organizations_can_be_off() {
    let api = Api::populated(2, 1, 2, 1).await;
    let url = format!("{}/v1/users", api.server.url);
    let client = reqwest::Client::builder().timeout(Duration::from_secs(20)).build().unwrap();
    for request in [client.get(&url), client.get(&url).bearer_auth("sk_test_wrong")] {
        let answer = answer(request).await;
        assert_eq!((answer.status, &answer.body["errors"][0]["code"]), (401, &json!("clerk_key_invalid")));
    }
    let wrong = answer(api.request("users").header("Clerk-API-Version", "2030-01-01")).await;
    assert_eq!((wrong.status, &wrong.body["errors"][0]["code"]), (400, &json!("api_version_invalid")));
    let instance = api.get("instance").await.body;
    assert_eq!(
        (instance["id"].as_str().unwrap(), &instance["environment_type"]),
        (&*api.clerk.lock().instance_id, &json!("production"))
    );
    let (user, organization) = (api.ids("users").await.remove(0), api.ids("organizations").await.remove(0));
    api.clerk.lock().organizations_enabled = false;
    let off = [
        "organizations".to_owned(),
        "organization_memberships".to_owned(),
        format!("organizations/{organization}"),
        format!("organizations/{organization}/memberships"),
        format!("users/{user}/organization_memberships"),
    ];
    for path in off {
        let answer = api.get(&path).await;
        let code = &answer.body["errors"][0]["code"];
        assert_eq!((answer.status, code), (403, &json!("organization_not_enabled_in_instance")), "{path}");
    }
    assert_eq!(api.get("users").await.status, 200);
}

#[tokio::test]
async fn answers_bear_the_time_of_clerks_own_clock() {
    let api = Api::populated(1, 0, 0, 1).await;
    assert_eq!(api.get("users").await.headers["date"], "Thu, 09 Oct 2025 08:53:20 GMT");
    api.clerk.lock().now += 86_400_000;
    assert_eq!(api.get("users").await.headers["date"], "Fri, 10 Oct 2025 08:53:20 GMT");
    api.clerk.lock().run_clock();
    tokio::time::sleep(Duration::from_millis(20)).await;
    api.get("users").await;
    assert!(api.clerk.lock().now >= START + 86_400_000 + 20, "it runs");
}

#[tokio::test]
async fn whoever_calls_too_often_is_told_for_how_long_his_endpoint_is_blocked() {
    let api = Api::populated(1, 0, 0, 1).await;
    api.clerk.limit_rate(Some(2));
    assert_eq!([api.get("users").await.status, api.get("users").await.status], [200, 200]);
    let refused = api.get("users").await;
    assert_eq!((refused.status, &refused.body["errors"][0]["code"]), (429, &json!("too_many_requests")));
    assert!((1..=10).contains(&refused.headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap()));
    assert_eq!(api.clerk.too_early(), 0, "the first refusal comes unannounced");
    assert_eq!(api.get("users?limit=1").await.status, 429);
    assert_eq!(api.clerk.too_early(), 1);

    api.clerk.limit_rate(None);
    assert_eq!(api.get("instance").await.status, 200, "another endpoint is not blocked");
    api.clerk.add_fault(Rule::on("/v1/instance", Fault::TooManyRequests(1)).times(1));
    let refused = api.get("instance").await;
    assert_eq!((refused.status, &refused.headers["retry-after"]), (429, &"1".parse().unwrap()));
    assert_eq!(refused.body["errors"], json!([]), "it may name no error");
    assert_eq!(api.get("instance").await.status, 429);
    assert_eq!(api.clerk.too_early(), 2);
    tokio::time::sleep(Duration::from_millis(1_050)).await;
    assert_eq!(api.get("instance").await.status, 200);
}

#[tokio::test]
async fn faults_happen_to_the_requests_that_they_are_meant_for() {
    let api = Api::populated(4, 2, 4, 1).await;
    api.clerk.add_fault(Rule::on("/v1/users", Fault::Status(503)).from(2).times(2));
    let mut statuses = Vec::new();
    for _ in 0..5 {
        statuses.push(api.get("users?limit=1").await.status);
    }
    assert_eq!(statuses, [200, 503, 503, 200, 200]);
    assert_eq!(api.get("organizations").await.status, 200, "another path");

    api.clerk.add_fault(Rule::on("/v1/organizations/*/memberships", Fault::Status(502)));
    let organization = api.ids("organizations").await.remove(0);
    assert_eq!(api.get(&format!("organizations/{organization}/memberships")).await.status, 502);
    assert_eq!(api.get(&format!("organizations/{organization}")).await.status, 200);

    let mut draws = Vec::new();
    for _ in 0..2 {
        api.clerk.clear_faults();
        api.clerk.add_fault(Rule::on("*", Fault::Status(500)).sometimes(300, 7));
        let mut drawn = Vec::new();
        for _ in 0..50 {
            drawn.push(api.get("instance").await.status);
        }
        draws.push(drawn);
    }
    assert_eq!(draws[0], draws[1], "the same seed, the same faults");
    let struck = draws[0].iter().filter(|status| **status == 500).count();
    assert!((5..=25).contains(&struck), "{struck} of 50");
}

#[tokio::test]
async fn each_fault_shows_on_the_wire() {
    let api = Api::populated(8, 3, 6, 1).await;
    let strike = |fault: Fault| {
        api.clerk.clear_faults();
        api.clerk.add_fault(Rule::on("*", fault));
    };
    for status in [500, 502, 503, 504] {
        strike(Fault::Status(status));
        let answer = api.get("users").await;
        assert_eq!(answer.status, status);
        assert!(answer.body["errors"][0]["code"].is_string());
    }
    for status in [200, 502] {
        strike(Fault::Html(status));
        let answer = api.get("users").await;
        assert_eq!(answer.status, status);
        assert!(answer.headers["content-type"].to_str().unwrap().starts_with("text/html"));
        assert!(answer.body.as_str().unwrap().starts_with("<!DOCTYPE"));
    }
    strike(Fault::Reset);
    let error = api.request("users").send().await.unwrap_err();
    assert!(format!("{error:?}").contains("ConnectionReset"), "{error:?}");

    strike(Fault::Hang);
    let error = api.request("users").timeout(Duration::from_millis(300)).send().await.unwrap_err();
    assert!(error.is_timeout(), "{error:?}");

    for (fault, has_length) in [(Fault::Truncated, true), (Fault::TruncatedChunks, false)] {
        strike(fault);
        let response = api.request("users").send().await.unwrap();
        assert_eq!((response.status().as_u16(), response.content_length().is_some()), (200, has_length));
        let mut response = response;
        let mut part = Vec::new();
        let end = loop {
            match response.chunk().await {
                Ok(Some(chunk)) => part.extend_from_slice(&chunk),
                end => break end,
            }
        };
        assert!(end.is_err() && part.starts_with(b"[{"), "{} bytes, then {end:?}", part.len());
    }

    strike(Fault::Drip(Duration::from_millis(5)));
    let began = Instant::now();
    let instance = api.get("instance").await;
    assert_eq!(instance.body["object"], "instance");
    assert!(began.elapsed() >= Duration::from_millis(5 * 100), "a hundred bytes and more");

    strike(Fault::WrongJson);
    assert!(api.get("users").await.body.is_object());

    strike(Fault::EmptyPage);
    assert_eq!(api.get("users").await.body, json!([]));
    assert_eq!(api.get("users/count").await.body["total_count"], 8);
    assert_eq!(api.get("organizations").await.body, json!({ "data": [], "total_count": 3 }));

    strike(Fault::Empty);
    assert_eq!(api.get("users").await.body, json!([]));
    assert_eq!(api.get("users/count").await.body["total_count"], 0);
    assert_eq!(api.get("organization_memberships").await.body, json!({ "data": [], "total_count": 0 }));

    strike(Fault::ShortPage);
    assert_eq!(api.ids("users?limit=6").await.len(), 3);
    let organizations = api.get("organizations?limit=2").await.body;
    assert_eq!((ids(&organizations).len(), &organizations["total_count"]), (1, &json!(3)));

    api.clerk.clear_faults();
    let asked = api.ids("users?limit=1").await.remove(0);
    strike(Fault::ExtraRow);
    let rows = api.ids(&format!("users?user_id={asked}")).await;
    assert_eq!((rows.len(), &rows[0]), (2, &asked));
    assert_eq!(api.ids("users?user_id=user_gone").await.len(), 1, "although nobody was asked for");

    let member = api.clerk.lock().memberships.values().next().unwrap().user_id.clone();
    strike(Fault::Nameless);
    let mine = api.get(&format!("users/{member}/organization_memberships")).await.body;
    assert!(mine["data"][0]["organization"]["id"].is_string() && mine["data"][0].get("public_user_data").is_none());

    strike(Fault::WrongInstance);
    assert_ne!(api.get("instance").await.body["id"], api.clerk.lock().instance_id.as_str());

    strike(Fault::Unauthorized);
    assert_eq!(api.get("users").await.status, 401);
    strike(Fault::Forbidden);
    let answer = api.get("organizations").await;
    assert_eq!(
        (answer.status, &answer.body["errors"][0]["code"]),
        (403, &json!("organization_not_enabled_in_instance"))
    );

    strike(Fault::NoDate);
    let answer = api.get("users").await;
    assert_eq!((answer.status, answer.headers.get("date")), (200, None));
}

#[test]
fn a_seed_makes_the_same_population_without_an_event() {
    let population = |seed| {
        let mut clerk = Clerk::new(seed, START);
        clerk.populate(50, 5, 40, 7);
        assert!(clerk.outbox.is_empty());
        let pairs: BTreeSet<(String, String)> =
            clerk.memberships.values().map(|m| (m.organization_id.clone(), m.user_id.clone())).collect();
        assert_eq!((clerk.users.len(), clerk.organizations.len(), pairs.len()), (50, 5, 40));
        clerk.memberships.values().cloned().collect::<Vec<_>>()
    };
    assert_eq!(population(1), population(1));
    assert_ne!(population(1), population(2));
}

#[tokio::test]
async fn events_and_answers_show_an_object_alike() {
    let mut clerk = Clerk::new(1, START);
    let ada = clerk.create_user("Ada", "Lovelace");
    clerk.update_user(&ada, |user| {
        user.locked = true;
        user.phone_number = Some("+15550100123".to_owned());
        user.public_metadata = Some(json!({ "plan": "team" }).into());
    });
    let acme = clerk.create_organization("Acme Widgets", &ada);
    let events: Vec<Value> = clerk.outbox.iter().map(|event| serde_json::from_str(&event.body).unwrap()).collect();
    let api = Api::of(clerk).await;
    assert_eq!(api.get(&format!("users/{ada}")).await.body, events[1]["data"]);
    assert_eq!(api.get(&format!("organizations/{acme}")).await.body, events[2]["data"]);
    assert_eq!(api.get("organization_memberships").await.body["data"][0], events[3]["data"]);
    let user = &events[1]["data"];
    assert_eq!((&user["locked"], &user["lockout_expires_in_seconds"]), (&json!(true), &json!(3_600)));
    assert_eq!(user["phone_numbers"][0]["id"], user["primary_phone_number_id"]);
    assert_eq!(user["public_metadata"], json!({ "plan": "team" }));
}

#[tokio::test]
async fn what_a_role_may_do_changes_in_every_membership_and_in_none_of_their_times() {
    let mut clerk = Clerk::new(1, START);
    clerk.populate(6, 2, 6, 1);
    clerk.now += 60_000;
    clerk.set_role_permissions("org:member", &["org:invoices:read"]);
    clerk.remap_role("org:admin", "org:member");
    let events: Vec<&str> = clerk.outbox.iter().map(|event| event.event_type).collect();
    assert_eq!(events, ["role.updated"]);
    let role: Value = serde_json::from_str(&clerk.outbox[0].body).unwrap();
    assert_eq!(role["data"]["permissions"][0]["key"], "org:invoices:read");
    let api = Api::of(clerk).await;
    let memberships = api.get("organization_memberships").await.body;
    assert_eq!(memberships["total_count"], 6);
    for membership in memberships["data"].as_array().unwrap() {
        assert_eq!((&membership["role"], &membership["role_name"]), (&json!("org:member"), &json!("Member")));
        assert_eq!(membership["permissions"], json!(["org:invoices:read"]));
        assert_eq!(membership["updated_at"], membership["created_at"]);
    }
}

#[tokio::test]
async fn who_leaves_a_directory_is_updated_and_stays_a_member() {
    let mut clerk = Clerk::new(1, START);
    let ada = clerk.create_user("Ada", "Lovelace");
    let acme = clerk.create_organization("Acme Widgets", &ada);
    clerk.outbox.clear();
    clerk.deprovision_user(&ada);
    let events: Vec<&str> = clerk.outbox.iter().map(|event| event.event_type).collect();
    assert_eq!(events, ["user.updated"]);
    assert!(clerk.users[&ada].deprovisioned);
    assert_eq!(clerk.memberships_of(&acme).count(), 1);
    clerk.set_created_at(&ada, START - 1);
    assert_eq!(clerk.users[&ada].created_at, START - 1);
    clerk.delete_user(&ada);
    assert_eq!((clerk.memberships_of(&acme).count(), clerk.memberships.len()), (0, 0));
}
