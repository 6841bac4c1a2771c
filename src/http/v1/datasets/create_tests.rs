use axum::body::Body;
use axum::http::StatusCode;
use futures_util::stream;

use crate::domain::DatasetFormat;
use crate::http::Limits;
use crate::http::testing::TestApp;

const CSV: &str = "text,label\nhello,greeting\nbye,farewell\n";
/// `printf 'text,label\nhello,greeting\nbye,farewell\n' | sha256sum`
const CSV_SHA256: &str = "b62bd131fc2d5a9ad0ac82b9ea8df363d8ceaf23799d722fec12a937442f26f0";

fn form(parts: &[(&str, &str, &str, &str)]) -> String {
    let mut body = String::new();
    for (name, file_name, content_type, content) in parts {
        body += &format!(
            "--XX\r\ncontent-disposition: form-data; name=\"{name}\"; filename=\"{file_name}\"\r\n\
             content-type: {content_type}\r\n\r\n{content}\r\n"
        );
    }
    body + "--XX--\r\n"
}

const FORM: [(&str, &str); 1] = [("content-type", "multipart/form-data; boundary=XX")];

/// Nothing half-done may stay behind.
fn assert_nothing_left(app: &TestApp) {
    for dir in ["tmp", "datasets"] {
        let left = std::fs::read_dir(app.state.data_dir.root().join(dir))
            .map(Iterator::count)
            .unwrap_or(0);
        assert_eq!(left, 0, "files are left in {dir}");
    }
}

#[tokio::test]
async fn a_raw_body_is_stored_hashed_and_described() {
    let app = TestApp::start().await;
    let answer = app
        .request(
            "POST",
            "/v1/datasets?name=hi",
            &[("content-type", "text/csv; charset=utf-8")],
            CSV,
        )
        .await;
    assert_eq!(answer.status, StatusCode::CREATED);
    let json = answer.json();
    let id = json["id"].as_str().unwrap();
    assert_eq!(answer.headers["location"], format!("/v1/datasets/{id}"));
    assert_eq!(json["name"], "hi");
    assert_eq!(json["format"], "csv");
    assert_eq!(json["header"], true);
    assert_eq!(json["size_bytes"], CSV.len());
    assert_eq!(json["sha256"], CSV_SHA256);
    assert_eq!(json["rows"], 2);
    assert_eq!(json["columns"], serde_json::json!(["text", "label"]));
    let data_dir = &app.state.data_dir;
    let file = data_dir.dataset_file(id.parse().unwrap(), DatasetFormat::Csv);
    assert_eq!(std::fs::read_to_string(file).unwrap(), CSV);
    assert_eq!(std::fs::read_dir(data_dir.tmp_dir()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_form_takes_name_and_format_from_its_file() {
    let app = TestApp::start().await;
    let body = form(&[(
        "file",
        "dir/a.tsv",
        "application/octet-stream",
        "good\t1\nbad\t0\n",
    )]);
    let path = "/v1/datasets?header=false&columns=text,label";
    let answer = app.request("POST", path, &FORM, body).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text());
    let json = answer.json();
    assert_eq!(json["name"], "a.tsv");
    assert_eq!(json["format"], "tsv");
    assert_eq!(json["header"], false);
    assert_eq!(json["rows"], 2);
    assert_eq!(json["columns"], serde_json::json!(["text", "label"]));
}

#[tokio::test]
async fn a_form_must_be_one_file() {
    let app = TestApp::start().await;
    let csv = ("file", "a.csv", "text/csv", CSV);
    for (body, pointer) in [
        (form(&[]), "/file"),
        (form(&[csv, csv]), "/file"),
        (form(&[csv, ("title", "", "text/plain", "x")]), "/title"),
        (form(&[("upload", "a.csv", "text/csv", CSV)]), "/upload"),
    ] {
        let answer = app.request("POST", "/v1/datasets", &FORM, body).await;
        answer.assert_problem(StatusCode::UNPROCESSABLE_ENTITY, "validation_failed");
        assert_eq!(answer.pointers(), [pointer]);
    }
    let cut = form(&[csv]).replace("--XX--", "");
    let answer = app.request("POST", "/v1/datasets", &FORM, cut).await;
    answer.assert_problem(StatusCode::BAD_REQUEST, "validation_failed");
    assert_nothing_left(&app);
}

#[tokio::test]
async fn the_format_must_be_known() {
    let app = TestApp::start().await;
    let binary = [("content-type", "application/octet-stream")];
    let answer = app
        .request("POST", "/v1/datasets?name=a", &binary, CSV)
        .await;
    answer.assert_problem(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type");
    let answer = app
        .request("POST", "/v1/datasets?name=a&format=csv", &binary, CSV)
        .await;
    assert_eq!(answer.status, StatusCode::CREATED);
    let answer = app
        .request("POST", "/v1/datasets?name=a&format=xls", &binary, CSV)
        .await;
    assert_eq!(answer.pointers(), ["/query/format"]);
    let csv = [("content-type", "text/csv")];
    let answer = app.request("POST", "/v1/datasets", &csv, CSV).await;
    assert_eq!(answer.pointers(), ["/query/name"]);
    let answer = app
        .request("POST", "/v1/datasets?name=a&columns=x,x", &csv, CSV)
        .await;
    assert_eq!(answer.pointers(), ["/query/columns"]);
    let answer = app
        .request("POST", "/v1/datasets?name=a&columns=x,y", &csv, CSV)
        .await;
    answer.assert_problem(StatusCode::UNPROCESSABLE_ENTITY, "validation_failed");
    assert_eq!(answer.pointers(), ["/query/columns"]);
}

#[tokio::test]
async fn a_file_the_inspection_refuses_leaves_nothing() {
    let app = TestApp::start().await;
    let csv = [("content-type", "text/csv")];
    let answer = app.request("POST", "/v1/datasets?name=a", &csv, "").await;
    answer.assert_problem(StatusCode::UNPROCESSABLE_ENTITY, "dataset_empty");
    let body = b"text,label\n\xff,1\n".to_vec();
    let answer = app.request("POST", "/v1/datasets?name=a", &csv, body).await;
    answer.assert_problem(StatusCode::UNPROCESSABLE_ENTITY, "dataset_not_utf8");
    assert!(answer.json()["line"].is_u64());
    assert_nothing_left(&app);
    assert_eq!(
        app.get("/v1/datasets").await.json()["data"],
        serde_json::json!([])
    );
}

#[tokio::test]
async fn a_file_above_the_limit_is_refused_announced_or_not() {
    let app = TestApp::with_limits(Limits {
        dataset_bytes: 20,
        ..Limits::default()
    })
    .await;
    let csv = [("content-type", "text/csv")];
    let announced = [("content-type", "text/csv"), ("content-length", "37")];
    let answer = app
        .request("POST", "/v1/datasets?name=a", &announced, CSV)
        .await;
    answer.assert_problem(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large");
    let chunks = stream::iter(CSV.as_bytes().chunks(7).map(Ok::<_, std::io::Error>));
    let answer = app
        .request(
            "POST",
            "/v1/datasets?name=a",
            &csv,
            Body::from_stream(chunks),
        )
        .await;
    answer.assert_problem(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large");
    let body = form(&[("file", "a.csv", "text/csv", CSV)]);
    let answer = app.request("POST", "/v1/datasets", &FORM, body).await;
    answer.assert_problem(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large");
    assert_nothing_left(&app);
}

#[tokio::test]
async fn a_client_that_leaves_half_way_leaves_nothing() {
    let app = TestApp::start().await;
    let csv = [("content-type", "text/csv")];
    let broken = stream::iter([
        Ok("text,la"),
        Err(std::io::Error::other("connection reset")),
    ]);
    let answer = app
        .request(
            "POST",
            "/v1/datasets?name=a",
            &csv,
            Body::from_stream(broken),
        )
        .await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert_nothing_left(&app);
}
