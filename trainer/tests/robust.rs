//! Runs that are killed, damaged, or out of space.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use flate2::{Compression, write::GzEncoder};

const PROGRAM: &str = env!("CARGO_BIN_EXE_quell-train");

/// How often a run is killed.
const KILLS: u64 = 30;

/// Options of a run that is long enough to be killed that often.
const LONG: [&str; 2] = ["--epochs", "100"];

fn write_data(dir: &Path) {
    for (prefix, count) in [("train", 64u32), ("t10k", 8)] {
        let labels = (0..count).map(|i| (i % 10) as u8).collect();
        let pixels = (0..count * 784).map(|i| (i * 37 % 251) as u8).collect();
        write_idx(
            dir,
            &format!("{prefix}-images-idx3-ubyte.gz"),
            &[count, 28, 28],
            pixels,
        );
        write_idx(
            dir,
            &format!("{prefix}-labels-idx1-ubyte.gz"),
            &[count],
            labels,
        );
    }
}

fn write_idx(dir: &Path, name: &str, shape: &[u32], data: Vec<u8>) {
    let file = File::create(dir.join(name)).unwrap();
    let mut out = GzEncoder::new(file, Compression::fast());
    out.write_all(&[0, 0, 8, shape.len() as u8]).unwrap();
    for d in shape {
        out.write_all(&d.to_be_bytes()).unwrap();
    }
    out.write_all(&data).unwrap();
    out.finish().unwrap();
}

/// A run of a small perceptron that saves its state after every second step.
fn command(dir: &Path, output: &str, more: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.current_dir(dir).env("RAYON_NUM_THREADS", "1");
    command.args(["--model", "mlp", "--data", ".", "--output", output]);
    command.args(["--hidden", "16", "--blocks", "1", "--timesteps", "10"]);
    command.args(["--parts", "4", "--batch-size", "8"]);
    if !more.contains(&"--epochs") {
        command.args(["--epochs", "30"]);
    }
    command
        .args(more)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

fn run(dir: &Path, output: &str, more: &[&str]) -> Output {
    command(dir, output, more).output().unwrap()
}

fn weights(dir: &Path, output: &str) -> Vec<u8> {
    fs::read(dir.join(output).join("diffusion_pytorch_model.safetensors")).unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A program killed at any moment, thirty times, ends with the bytes of an unbroken run.
#[test]
fn a_run_killed_at_random_moments_equals_an_unbroken_one() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    write_data(dir);
    let began = Instant::now();
    let unbroken = run(dir, "unbroken", &LONG);
    assert!(unbroken.status.success(), "{}", text(&unbroken));
    let whole = began.elapsed();

    let (mut killed, mut random) = (0, 1u64);
    for _ in 0..KILLS {
        let begun = dir.join("killed.run/settings.json").exists();
        let mut command = command(dir, "killed", &LONG);
        let mut child = command.args(begun.then_some("--resume")).spawn().unwrap();
        random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        let share = (random >> 40) as f64 / (1u64 << 24) as f64;
        std::thread::sleep(whole.mul_f64(share * 0.06).max(Duration::from_millis(1)));
        killed += u64::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        let output = child.wait_with_output().unwrap();
        let said = text(&output);
        assert!(said.is_empty(), "a kill is no damage: {said}");
    }
    assert!(killed >= KILLS / 2, "only {killed} runs were still going");
    let last = command(dir, "killed", &LONG)
        .arg("--resume")
        .output()
        .unwrap();
    assert!(last.status.success(), "{}", text(&last));
    assert_eq!(weights(dir, "killed"), weights(dir, "unbroken"));
}

#[test]
fn a_damaged_state_is_named_and_the_one_before_it_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    write_data(dir);
    assert!(run(dir, "unbroken", &[]).status.success());
    assert!(run(dir, "a", &["--stop-after", "3"]).status.success());
    // 8 steps an epoch.
    let newest = dir.join("a.run/state-00000024.bin");
    let mut bytes = fs::read(&newest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 16;
    fs::write(&newest, bytes).unwrap();
    let resumed = run(dir, "a", &["--resume"]);
    let said = text(&resumed);
    assert!(resumed.status.success(), "{said}");
    assert!(said.contains("state-00000024.bin: checksum is"), "{said}");
    assert!(said.contains("the state before it is taken"), "{said}");
    assert_eq!(weights(dir, "a"), weights(dir, "unbroken"));
}

#[test]
fn settings_stay_as_they_are_when_a_run_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    write_data(dir);
    assert!(run(dir, "a", &["--stop-after", "1"]).status.success());
    let settings = dir.join("a.run/settings.json");
    let before = fs::metadata(&settings).unwrap().modified().unwrap();
    assert!(
        run(dir, "a", &["--resume", "--stop-after", "2"])
            .status
            .success()
    );
    assert_eq!(fs::metadata(&settings).unwrap().modified().unwrap(), before);
    let refused = run(dir, "a", &["--resume", "--seed", "1"]);
    assert!(text(&refused).contains("begun with other settings"));
}

/// The limit on the size of a file stands for the end of the disk: the system refuses a write.
#[cfg(unix)]
#[test]
fn a_full_disk_is_one_line_and_no_state_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    write_data(dir);
    assert!(run(dir, "a", &["--stop-after", "1"]).status.success());
    let inner = command(dir, "a", &["--resume"]);
    let mut limited = Command::new("sh");
    limited.current_dir(dir).args([
        "-c",
        "trap '' XFSZ; ulimit -f 8; exec \"$0\" \"$@\"",
        PROGRAM,
    ]);
    let output = limited.args(inner.get_args()).output().unwrap();
    let said = text(&output);
    assert!(!output.status.success());
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(
        said.starts_with("error: a.run/state-00000010.bin: cannot be written"),
        "{said}"
    );
    let last = run(dir, "a", &["--resume"]);
    assert!(last.status.success(), "{}", text(&last));
}

#[cfg(target_os = "linux")]
#[test]
fn a_log_on_a_full_disk_is_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    write_data(dir);
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = command(dir, "a", &[]).stdout(full).output().unwrap();
    let said = text(&output);
    assert!(!output.status.success());
    assert!(
        said.starts_with("error: standard output: cannot be written"),
        "{said}"
    );
    assert_eq!(said.lines().count(), 1, "{said}");
}
