use super::*;

const TEXT: &str = "Derive([(\"dev\",\"/nix/store/x30qdplv4hbvgp85yhrvsw5s8zgwxrg0-m-dev\",\"\",\"\"),\
    (\"out\",\"/nix/store/d9qdqrjlpv25j6nxhvhsxjblynz10c6i-m\",\"\",\"\")],\
    [(\"/nix/store/g3rcjylr4c1w5lfvcs6ykbyscln8075a-a.drv\",[\"dev\",\"out\"])],\
    [\"/nix/store/5bc9rxl78zzh3dpk5h1py43wa9a39sp6-s\"],\"x86_64-linux\",\"/bin/sh\",[\"-c\",\"a\\n\\\"b\\\\\"],\
    [(\"A\",\"\\t\\r\"),(\"B\",\"\")])";

fn refusal(text: &str) -> (usize, AtermProblem) {
    let error = Derivation::parse("m", text.as_bytes()).expect_err("must be refused");
    (error.offset, error.problem)
}

/// What is said when the first `from` becomes `to`, with the place counted from that of the change.
fn refusal_of(from: &str, to: &str) -> (i64, AtermProblem) {
    let place = TEXT.find(from).expect("the text has it");
    let (offset, problem) = refusal(&TEXT.replacen(from, to, 1));
    (offset as i64 - place as i64, problem)
}

#[test]
fn reads_and_writes() {
    let derivation = Derivation::parse("m", TEXT.as_bytes()).expect("valid");
    assert_eq!(derivation.args[1], "a\n\"b\\");
    assert_eq!(derivation.env[bstr::BStr::new("A")], "\t\r");
    assert_eq!(derivation.to_aterm().as_bstr(), TEXT);
}

#[test]
fn every_cut_is_refused_where_it_is() {
    for length in 0..TEXT.len() {
        let (offset, _) = refusal(&TEXT[..length]);
        assert!(offset <= length);
    }
    assert_eq!(refusal("DrvWithVersion(\"xp-dyn-drv\",[])"), (0, AtermProblem::Dynamic));
    assert_eq!(refusal(""), (0, AtermProblem::Expected("Derive(")));
    assert_eq!(refusal(&format!("{TEXT} ")), (TEXT.len(), AtermProblem::TrailingBytes));
    assert_eq!(refusal(&TEXT[..TEXT.len() - 4]).1, AtermProblem::UnfinishedString);
}

#[test]
fn only_the_text_that_nix_writes_is_read() {
    assert_eq!(refusal_of("\\n", "\n"), (0, AtermProblem::Escape));
    assert_eq!(refusal_of("\\n", "\\a"), (0, AtermProblem::Escape));
    assert_eq!(refusal_of("\"A\"", "\"C\""), (13, AtermProblem::Order));
    assert_eq!(refusal_of("\"A\"", "\"B\""), (13, AtermProblem::Order));
    assert_eq!(refusal_of("[\"dev\",", "[\"out\","), (7, AtermProblem::Order));
    assert!(matches!(refusal_of("(\"dev\"", "(\"pev\""), (_, AtermProblem::Order)));
    assert_eq!(refusal_of(",\"/bin/sh\"", ", \"/bin/sh\""), (1, AtermProblem::Expected("\"")));
}

#[test]
fn values_are_checked() {
    assert!(matches!(refusal_of("\"/nix/store/5bc", "\"/5bc"), (0, AtermProblem::StorePath(_))));
    assert_eq!(
        refusal_of(
            "\"/nix/store/g3rcjylr4c1w5lfvcs6ykbyscln8075a-a.drv\"",
            "\"/nix/store/g3rcjylr4c1w5lfvcs6ykbyscln8075a-a.dry\""
        ),
        (0, AtermProblem::NotADerivation)
    );
    assert!(matches!(refusal_of("\"dev\"", "\"d/v\""), (0, AtermProblem::OutputName(_))));
    assert!(matches!(refusal_of("\"x86_64-linux\"", "\"x\\\\\""), (0, AtermProblem::Platform)));
    let fields = "\"/nix/store/d9qdqrjlpv25j6nxhvhsxjblynz10c6i-m\",\"\",\"\"";
    let output = |to: &str| match refusal_of(fields, to) {
        (0, AtermProblem::Output(problem)) => problem,
        other => panic!("{other:?}"),
    };
    let path = "\"/nix/store/d9qdqrjlpv25j6nxhvhsxjblynz10c6i-m\"";
    assert!(matches!(output("\"/x\",\"\",\"\""), DerivationOutputError::Path(_)));
    assert!(matches!(output("\"\",\"sha3\",\"\""), DerivationOutputError::Hash(_)));
    assert!(matches!(output("\"\",\"r:git:sha1\",\"\""), DerivationOutputError::Hash(_)));
    assert_eq!(output("\"\",\"\",\"00\""), DerivationOutputError::HashWithoutAlgorithm);
    assert_eq!(output(&format!("{path},\"sha256\",\"\"")), DerivationOutputError::UnexpectedPath);
    assert_eq!(output(&format!("{path},\"sha256\",\"impure\"")), DerivationOutputError::UnexpectedPath);
    let md5 = "D41D8CD98F00B204E9800998ECF8427E";
    assert_eq!(output(&format!("{path},\"md5\",\"{md5}\"")), DerivationOutputError::HashForm);
    assert!(matches!(output(&format!("\"\",\"md5\",\"{}\"", md5.to_lowercase())), DerivationOutputError::Path(_)));
    // Not UTF-8: fine in a value of the environment, but not in an output's name.
    let with = |from: &str, to: &[u8]| {
        let (head, tail) = TEXT.split_once(from).expect("the text has it");
        let text = [head.as_bytes(), to, tail.as_bytes()].concat();
        Derivation::parse("m", &text).map(|derivation| assert_eq!(derivation.to_aterm(), text))
    };
    assert_eq!(with("\\t\\r", b"\xff\x00"), Ok(()));
    assert_eq!(with("\"dev\"", b"\"\xff\"").map_err(|error| error.problem), Err(AtermProblem::NotUtf8));
}

#[test]
fn bounds() {
    let many = |count: usize| TEXT.replace("[\"-c\",", &format!("[{}", "\"\",".repeat(count)));
    assert!(Derivation::parse("m", many(ARGS_MAX - 1).as_bytes()).is_ok());
    assert_eq!(refusal(&many(ARGS_MAX)).1, AtermProblem::TooMany(ARGS_MAX, "arguments"));
    assert_eq!(refusal(&" ".repeat(TEXT_BYTES_MAX + 1)), (0, AtermProblem::TooLarge));
}
