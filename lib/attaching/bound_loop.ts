/** The open device of an attachment, and what tells its binding from any other. */
import { encodeOptions, type StatusChanges } from "../kernel/configuration.ts";
import { checkDescriptor } from "../arguments.ts";
import { Loop } from "../kernel/loop.ts";
import { bindingOf } from "../kernel/loop_sysfs.ts";
import type { OpenedNode } from "../kernel/opened_node.ts";
import { Backing } from "./backing.ts";
import {
  type Claim,
  lockedError,
  tryLockRange,
  unlockOutside,
} from "./overlap.ts";
import { sequenceOf } from "./release.ts";

/** A backing file. */
export interface BackingFile {
  readonly device: bigint;
  readonly inode: bigint;
}

/** Tells bindings apart before Linux 5.15, which has no disk sequence numbers. */
export interface BoundFile extends BackingFile {
  /** What {@linkcode bindingOf} said; `undefined` where there is no sysfs, or a disk sequence number. */
  readonly binding: bigint | undefined;
}

/** A device that a file was attached to by us. */
export class BoundLoop extends Loop {
  /** The disk sequence number of the binding; 0 before Linux 5.15. */
  diskSequence = 0;
  /** What is bound. */
  backing: BoundFile | undefined;
  /** `/dev` has none: it was opened through one that has gone. */
  readonly isWithoutNode: boolean;
  /**
   * The bytes that are locked. The descriptor stays open until the device is closed: only
   * through it the lock of the description that is bound can be moved.
   */
  #claim: Claim | undefined;

  constructor(node: OpenedNode) {
    super(node.minor, node);
    this.isWithoutNode = node.isTemporary;
  }

  /** Notes what tells this binding from any other, once the descriptor is closed. */
  remember({ device, inode }: BackingFile): void {
    this.diskSequence = sequenceOf(this) ?? 0;
    const binding = this.diskSequence === 0 ? bindingOf(this.minor) : undefined;
    this.backing = { device, inode, binding };
  }

  /** Takes over the descriptor that holds the lock. */
  hold(claim: Claim): void {
    this.#claim = claim;
  }

  override close(): void {
    super.close();
    this.#claim?.backing[Symbol.dispose]();
    this.#claim = undefined;
  }

  override changeFd(fd: number): void {
    const claim = this.#claim;
    if (claim === undefined) super.changeFd(fd);
    else this.#changeLocked(fd, claim);
    const { device, inode } = this.getInfo();
    this.backing = { device, inode, binding: this.backing?.binding };
    if (this.diskSequence !== 0) this.diskSequence = this.getDiskSequence();
  }

  #changeLocked(fd: number, claim: Claim): void {
    const borrowed = new Backing(checkDescriptor(fd, "fd"), `descriptor ${fd}`);
    const backing = borrowed.reopen(true);
    try {
      const next = { ...claim, backing, readOnly: true };
      if (!tryLockRange(next)) throw lockedError(next, this);
      super.changeFd(backing.fd);
      this.#claim = next;
    } catch (error) {
      backing[Symbol.dispose]();
      throw error;
    }
    claim.backing[Symbol.dispose]();
  }

  override setStatus(changes: StatusChanges): void {
    const claim = this.#claim;
    const isMoved = changes.offset !== undefined ||
      changes.sizelimit !== undefined;
    if (claim === undefined || !isMoved) return super.setStatus(changes);
    const { offset, sizelimit } = encodeOptions(changes).info;
    const next = {
      ...claim,
      start: changes.offset === undefined ? claim.start : offset,
      length: changes.sizelimit === undefined ? claim.length : sizelimit,
    };
    // Both ranges are locked until it is known which one it is.
    if (!tryLockRange(next)) throw lockedError(next, this);
    try {
      super.setStatus(changes);
      this.#claim = next;
    } finally {
      unlockOutside(claim.backing.fd, this.#claim!);
    }
  }
}
