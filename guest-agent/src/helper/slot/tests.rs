//! Slots below a folder that looks like sysfs, with a kernel that does what a test says.

use std::cell::{Cell, RefCell};

use super::*;

const SHORT: Duration = Duration::from_millis(20);
const NAME: &str = "LNRO0005:0a";

/// What the kernel finds in the slot.
#[derive(Clone, Copy)]
enum Content {
    Nothing,
    Disk,
    NetworkCard,
    /// A device whose driver fails.
    Broken,
}

struct Fake {
    root: PathBuf,
    content: Content,
    /// How often the disk is still found in use.
    uses: Cell<u32>,
    stored: RefCell<Vec<(String, String)>>,
}

impl Fake {
    fn new(test: &str, content: Content) -> Self {
        let root = std::env::temp_dir().join(format!("strato-slot-{}-{test}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        let fake = Self {
            root,
            content,
            uses: Cell::new(0),
            stored: RefCell::default(),
        };
        fs::create_dir_all(fake.directory()).expect("a folder for the slot");
        fs::create_dir_all(fake.root.join("dev")).expect("a folder for nodes");
        fake
    }

    fn directory(&self) -> PathBuf {
        self.root.join("sys/bus/platform/devices").join(NAME)
    }

    fn slot(&self) -> Slot<'_> {
        Slot::find(NAME, self).expect("the slot is there")
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("folders");
        fs::write(path, text).expect("a file");
    }

    /// A virtio device of the slot: type, whether it has a driver, and its attributes.
    fn appear(&self, id: &str, driver: bool, attributes: &[(&str, &str)]) {
        let virtio = format!("sys/bus/platform/devices/{NAME}/virtio3");
        self.write(&format!("{virtio}/device"), id);
        if driver {
            self.write(&format!("{virtio}/driver/module"), "");
        }
        for (name, text) in attributes {
            self.write(&format!("{virtio}/{name}"), text);
        }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

impl Kernel for Fake {
    fn root(&self) -> &Path {
        &self.root
    }

    fn store(&self, attribute: &Path, text: &str) -> io::Result<()> {
        let driver = self.root.join("sys/bus/platform/drivers/virtio-mmio");
        let attribute = attribute.strip_prefix(driver).expect("the driver's");
        let attribute = attribute.to_str().expect("a name").to_owned();
        self.stored
            .borrow_mut()
            .push((attribute.clone(), text.to_owned()));
        if attribute == "unbind" {
            fs::remove_dir_all(self.directory())?;
            return fs::create_dir(self.directory());
        }
        match self.content {
            Content::Nothing => return Err(io::Error::from_raw_os_error(libc::ENODEV)),
            Content::Disk => {
                let attributes = [("block/vdb/serial", "hot"), ("block/vdb/size", "4096\n")];
                self.appear("0x0002\n", true, &attributes);
                self.write("dev/vdb", "");
            }
            Content::NetworkCard => {
                self.appear(
                    "0x0001\n",
                    true,
                    &[("net/eth0/address", "02:53:54:52:00:0a\n")],
                );
            }
            Content::Broken => self.appear("0x0001\n", false, &[]),
        }
        fs::create_dir(self.directory().join("driver"))
    }

    fn claim(&self, node: &Path) -> io::Result<File> {
        if let Some(left) = self.uses.get().checked_sub(1) {
            self.uses.set(left);
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        File::open(node)
    }
}

fn refusal<T: std::fmt::Debug>(result: Result<T>) -> (ErrorKind, String) {
    let error = result.expect_err("a refusal");
    (error.kind, error.message)
}

#[test]
fn find_of_a_slot_that_is_not_there_names_it() {
    let fake = Fake::new("absent", Content::Disk);
    let (kind, message) = refusal(Slot::find("LNRO0005:ff", &fake).map(|_| ()));
    assert_eq!(kind, ErrorKind::NotFound);
    assert!(message.contains("LNRO0005:ff"), "{message}");
}

#[test]
fn bind_of_a_disk_tells_its_name_and_serial() {
    let fake = Fake::new("disk", Content::Disk);
    let bound = fake.slot().bind(PATIENCE).expect("bound");
    let expected = Bound {
        virtio_id: BLOCK_DEVICE,
        name: "vdb".to_owned(),
        serial: "hot".to_owned(),
        ..Bound::default()
    };
    assert_eq!(bound, expected);
    assert_eq!(
        *fake.stored.borrow(),
        [("bind".to_owned(), NAME.to_owned())]
    );
}

#[test]
fn bind_of_a_network_card_tells_its_name_and_mac() {
    let fake = Fake::new("card", Content::NetworkCard);
    let bound = fake.slot().bind(PATIENCE).expect("bound");
    assert_eq!(
        (bound.name.as_str(), bound.mac.as_str()),
        ("eth0", "02:53:54:52:00:0a")
    );
}

#[test]
fn bind_of_an_empty_slot_is_refused() {
    let fake = Fake::new("empty", Content::Nothing);
    let (kind, message) = refusal(fake.slot().bind(PATIENCE));
    assert_eq!(kind, ErrorKind::FailedPrecondition);
    assert!(
        message.contains(NAME) && message.contains("DeviceID 0"),
        "{message}"
    );
}

#[test]
fn bind_of_what_is_bound_is_refused_without_a_write() {
    let fake = Fake::new("twice", Content::Disk);
    fake.slot().bind(PATIENCE).expect("bound");
    assert_eq!(
        refusal(fake.slot().bind(PATIENCE)).0,
        ErrorKind::AlreadyExists
    );
    assert_eq!(fake.stored.borrow().len(), 1);
}

#[test]
fn bind_of_what_no_driver_takes_is_undone_in_bounded_time() {
    let fake = Fake::new("broken", Content::Broken);
    let (kind, message) = refusal(fake.slot().bind(SHORT));
    assert_eq!(kind, ErrorKind::DeadlineExceeded);
    assert!(message.contains("20ms"), "{message}");
    assert!(!fake.slot().is_bound());
}

#[test]
fn unbind_lets_go_of_a_disk() {
    let fake = Fake::new("unbind", Content::Disk);
    fake.slot().bind(PATIENCE).expect("bound");
    fake.slot().unbind(SHORT).expect("unbound");
    assert!(!fake.slot().is_bound());
    assert_eq!(
        refusal(fake.slot().unbind(SHORT)).0,
        ErrorKind::FailedPrecondition
    );
}

#[test]
fn unbind_of_a_disk_that_is_in_use_is_refused() {
    let fake = Fake::new("in-use", Content::Disk);
    fake.slot().bind(PATIENCE).expect("bound");
    fake.uses.set(u32::MAX);
    let (kind, message) = refusal(fake.slot().unbind(SHORT));
    assert_eq!(kind, ErrorKind::FailedPrecondition);
    assert!(
        message.contains("vdb") && message.contains("in use"),
        "{message}"
    );
    assert!(fake.slot().is_bound());
}

#[test]
fn unbind_waits_for_mounts_that_are_going() {
    let fake = Fake::new("going", Content::Disk);
    fake.slot().bind(PATIENCE).expect("bound");
    fake.uses.set(3);
    fake.slot().unbind(PATIENCE).expect("unbound");
    assert_eq!(fake.uses.get(), 0);
}

#[test]
fn unbind_of_the_line_to_the_host_is_refused() {
    let fake = Fake::new("vsock", Content::Nothing);
    fake.appear("0x0013\n", true, &[]);
    fs::create_dir(fake.directory().join("driver")).expect("bound from the start");
    let (kind, message) = refusal(fake.slot().unbind(SHORT));
    assert_eq!(kind, ErrorKind::FailedPrecondition);
    assert!(message.contains("type 19"), "{message}");
    assert!(fake.slot().is_bound());
}
