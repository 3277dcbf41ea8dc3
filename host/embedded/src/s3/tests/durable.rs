//! What the disk is asked for, and what comes back when it had not written everything. The crash of a machine is played by
//! undoing what was never synced: small objects' own files.

use super::super::folder::Folder;
use super::*;

const SMALL: &[u8] = b"small";

async fn start(folder: &Path) -> (S3Endpoint, Client) {
    let options = S3Options { durable: true, ..options(folder) };
    let endpoint = S3Endpoint::start(options, Arc::new(SystemClock)).await.expect("starts");
    let client = client(&endpoint.url(), SECRET_KEY, RequestChecksumCalculation::WhenRequired);
    (endpoint, client)
}

async fn put(client: &Client, key: &str, body: &[u8]) {
    client.put_object().bucket(BUCKET).key(key).body(ByteStream::from(body.to_vec())).send().await.expect("puts");
}

async fn get(client: &Client, key: &str) -> Option<Vec<u8>> {
    match client.get_object().bucket(BUCKET).key(key).send().await {
        Ok(output) => Some(output.body.collect().await.expect("a body").to_vec()),
        Err(error) => {
            assert_eq!(error.code(), Some("NoSuchKey"));
            None
        }
    }
}

fn file_of(folder: &Path, key: &str) -> std::path::PathBuf {
    folder.join("buckets").join(BUCKET).join(super::super::keys::path_of(key).expect("a key"))
}

#[tokio::test]
async fn a_small_object_waits_for_the_disk_once_and_many_share_it() {
    let folder = tempfile::tempdir().expect("temporary directory");
    let (endpoint, client) = start(folder.path()).await;
    let before = endpoint.syncs();
    put(&client, "one", SMALL).await;
    assert_eq!(endpoint.syncs() - before, 1, "its record, and neither its file nor its directories");
    let before = endpoint.syncs();
    let keys: Vec<String> = (0..40).map(|index| format!("many/{index}")).collect();
    futures_util::future::join_all(keys.iter().map(|key| put(&client, key, SMALL))).await;
    let syncs = endpoint.syncs() - before;
    assert!((1..=40).contains(&syncs), "{syncs} for 40 objects");
    endpoint.stop().await;
}

#[tokio::test]
async fn what_was_answered_comes_back_whatever_became_of_its_file() {
    let folder = tempfile::tempdir().expect("temporary directory");
    let (endpoint, client) = start(folder.path()).await;
    for key in ["gone", "empty", "torn", "sound", "dir/in-a-directory"] {
        put(&client, key, b"an older one").await;
        put(&client, key, key.as_bytes()).await;
    }
    put(&client, "deleted", SMALL).await;
    let deleted = std::fs::read(file_of(folder.path(), "deleted")).expect("its file");
    client.delete_object().bucket(BUCKET).key("deleted").send().await.expect("deletes");
    endpoint.stop().await;

    std::fs::remove_file(file_of(folder.path(), "gone")).expect("lost");
    std::fs::write(file_of(folder.path(), "empty"), b"").expect("lost");
    let torn = file_of(folder.path(), "torn");
    let mut bytes = std::fs::read(&torn).expect("its file");
    bytes[..4].fill(0);
    std::fs::write(&torn, bytes).expect("damaged");
    std::fs::remove_dir_all(file_of(folder.path(), "dir/in-a-directory").parent().expect("a parent")).expect("lost");
    std::fs::create_dir_all(file_of(folder.path(), "deleted").parent().expect("a parent")).expect("there");
    std::fs::write(file_of(folder.path(), "deleted"), deleted).expect("its removal was lost");

    let (endpoint, client) = start(folder.path()).await;
    for key in ["gone", "empty", "torn", "sound", "dir/in-a-directory"] {
        assert_eq!(get(&client, key).await.as_deref(), Some(key.as_bytes()), "{key}");
    }
    assert_eq!(get(&client, "deleted").await, None);
    endpoint.stop().await;
}

#[tokio::test]
async fn what_is_large_or_refused_is_not_undone_by_the_journal() {
    let folder = tempfile::tempdir().expect("temporary directory");
    let large = vec![7; 100 << 10];
    for round in 0..2 {
        let (endpoint, client) = start(folder.path()).await;
        if round == 0 {
            put(&client, "grown", SMALL).await;
            put(&client, "grown", &large).await;
            put(&client, "shrunk", &large).await;
            put(&client, "shrunk", SMALL).await;
            put(&client, "once", SMALL).await;
            let again = client.put_object().bucket(BUCKET).key("once").if_none_match("*");
            let refused = again.body(ByteStream::from_static(b"other")).send().await.expect_err("write-once");
            assert_eq!(refused.code(), Some("PreconditionFailed"));
        }
        assert_eq!(get(&client, "grown").await.as_deref(), Some(&large[..]), "round {round}");
        assert_eq!(get(&client, "shrunk").await.as_deref(), Some(SMALL), "round {round}");
        assert_eq!(get(&client, "once").await.as_deref(), Some(SMALL), "round {round}");
        endpoint.stop().await;
    }
}

#[tokio::test]
async fn the_journal_is_emptied_at_each_start() {
    let folder = tempfile::tempdir().expect("temporary directory");
    for _ in 0..3 {
        let (endpoint, client) = start(folder.path()).await;
        put(&client, "key", SMALL).await;
        endpoint.stop().await;
        let journals = std::fs::read_dir(folder.path().join("journal")).expect("reads").count();
        assert_eq!(journals, 1);
    }
    drop(Folder::open(folder.path(), true).expect("opens"));
    let left = std::fs::read_dir(folder.path().join("journal")).expect("reads").flatten();
    assert_eq!(left.map(|entry| entry.metadata().expect("there").len()).sum::<u64>(), 0);
}
