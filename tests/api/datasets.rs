//! Uploading, listing and deleting datasets.

use serde_json::Value;

use crate::support::TestServer;

#[test]
fn a_raw_upload_is_inspected_hashed_and_listed() {
    let server = TestServer::with_slots(0);
    let body = "text,label\n\"two\nlines\",a\nplain,b\n";
    let response = server.upload("name=mine", "text/csv", body);
    assert_eq!(response.status(), 201);
    let location = response.headers()["location"].to_str().unwrap().to_owned();
    let dataset: Value = response.json().unwrap();
    assert_eq!(dataset["name"], "mine");
    assert_eq!(dataset["format"], "csv");
    assert_eq!(dataset["rows"], 2);
    assert_eq!(dataset["columns"], serde_json::json!(["text", "label"]));
    assert_eq!(dataset["size_bytes"], body.len());
    let expected: String = {
        use sha2::Digest as _;
        sha2::Sha256::digest(body)
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect()
    };
    assert_eq!(dataset["sha256"], expected);
    assert_eq!(server.get_json(&location), dataset);
    let list = server.get_json("/v1/datasets");
    assert_eq!(list["data"][0], dataset);
    assert_eq!(list["has_more"], false);
}

#[test]
fn a_multipart_upload_takes_its_format_from_the_file_name() {
    let server = TestServer::with_slots(0);
    let part = reqwest::blocking::multipart::Part::text("{\"text\":\"a\",\"label\":1}\n")
        .file_name("rows.jsonl");
    let form = reqwest::blocking::multipart::Form::new().part("file", part);
    let response = server
        .http
        .post(server.url("/v1/datasets"))
        .multipart(form)
        .send()
        .unwrap();
    assert_eq!(response.status(), 201);
    let dataset: Value = response.json().unwrap();
    assert_eq!(dataset["format"], "jsonl");
    assert_eq!(dataset["columns"], serde_json::json!(["text", "label"]));
}

#[test]
fn tab_separated_rows_without_a_header() {
    let server = TestServer::with_slots(0);
    let response = server.upload(
        "name=sst&header=false&columns=text,label",
        "text/tab-separated-values",
        "a \"quoted film\t1\nit 's fine\t0\n",
    );
    assert_eq!(response.status(), 201);
    let dataset: Value = response.json().unwrap();
    assert_eq!(dataset["rows"], 2);
    assert_eq!(dataset["columns"], serde_json::json!(["text", "label"]));
}

#[test]
fn a_deleted_dataset_is_gone_from_the_disk_too() {
    let server = TestServer::with_slots(0);
    let id = server.csv("text,label\na,b\n");
    let folder = server.data_dir.join("datasets").join(&id);
    assert!(folder.is_dir());
    let delete = |id: &str| {
        server
            .http
            .delete(server.url(&format!("/v1/datasets/{id}")))
            .send()
            .unwrap()
    };
    assert_eq!(delete(&id).status(), 204);
    assert!(!folder.exists());
    let again = delete(&id);
    assert_eq!(again.status(), 404);
    assert_eq!(again.json::<Value>().unwrap()["code"], "dataset_not_found");
}

#[test]
fn a_page_of_datasets_leads_to_the_next() {
    let server = TestServer::with_slots(0);
    let ids: Vec<String> = (0..5)
        .map(|i| server.csv(&format!("text,label\n{i},x\n")))
        .collect();
    let mut seen = Vec::new();
    let mut path = "/v1/datasets?limit=2".to_owned();
    loop {
        let page = server.get_json(&path);
        let data = page["data"].as_array().unwrap();
        seen.extend(data.iter().map(|d| d["id"].as_str().unwrap().to_owned()));
        if page["has_more"] == false {
            break;
        }
        let cursor = page["next_cursor"].as_str().unwrap();
        path = format!("/v1/datasets?limit=2&after={cursor}");
    }
    let newest_first: Vec<String> = ids.into_iter().rev().collect();
    assert_eq!(seen, newest_first);
}
