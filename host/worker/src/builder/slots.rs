//! Build slots: a job takes one while it builds, and none while it uploads. Start at [`Slot`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

/// How many are in use, and a bell for who waits for one.
#[derive(Debug, Default)]
pub(super) struct Slots {
    building: AtomicU32,
    uploading: AtomicU32,
    freed: Notify,
}

impl Slots {
    /// Jobs that build, or prepare to.
    pub(super) fn building(&self) -> u32 {
        self.building.load(Ordering::Acquire)
    }

    /// Jobs that are built and not yet uploaded.
    pub(super) fn uploading(&self) -> u32 {
        self.uploading.load(Ordering::Acquire)
    }

    /// Waits until a slot was freed, or until somebody asked to be woken. Rings once for many.
    pub(super) async fn freed(&self) {
        self.freed.notified().await;
    }

    /// Rings after a while, although nothing was freed.
    pub(super) fn wake_after(self: &Arc<Self>, pause: Duration) {
        let slots = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            slots.freed.notify_one();
        });
    }
}

/// A build slot in use; dropping it frees it.
#[derive(Debug)]
pub(super) struct Slot(Arc<Slots>);

/// An upload that takes no slot; dropping it ends it.
#[derive(Debug)]
pub(super) struct Uploading(Arc<Slots>);

impl Slot {
    /// Takes one. The only taker is the claim loop, which has counted before.
    pub(super) fn take(slots: &Arc<Slots>) -> Self {
        slots.building.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(slots))
    }

    /// The build is over, the upload begins.
    pub(super) fn into_uploading(self) -> Uploading {
        self.0.uploading.fetch_add(1, Ordering::AcqRel);
        Uploading(Arc::clone(&self.0))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.building.fetch_sub(1, Ordering::AcqRel);
        self.0.freed.notify_one();
    }
}

impl Drop for Uploading {
    fn drop(&mut self) {
        self.0.uploading.fetch_sub(1, Ordering::AcqRel);
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slot_is_free_again_when_the_upload_begins_and_the_bell_rings() {
        let slots = Arc::new(Slots::default());
        let (first, second) = (Slot::take(&slots), Slot::take(&slots));
        assert_eq!((slots.building(), slots.uploading()), (2, 0));
        let uploading = first.into_uploading();
        slots.freed().await;
        assert_eq!((slots.building(), slots.uploading()), (1, 1));
        drop(uploading);
        slots.freed().await;
        drop(second);
        slots.freed().await;
        assert_eq!((slots.building(), slots.uploading()), (0, 0));
    }
}
