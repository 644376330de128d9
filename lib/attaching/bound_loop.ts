/** The open device of an attachment, with the identity of its binding. */
import { encodeOptions, type StatusChanges } from "../kernel/configuration.ts";
import { checkDescriptor } from "../arguments.ts";
import { Loop } from "../kernel/loop.ts";
import { bindingOf } from "../kernel/loop_sysfs.ts";
import type { OpenedNode } from "../kernel/opened_node.ts";
import { Backing } from "./backing.ts";
import {
  type Claim,
  lockedError,
  lockForChange,
  tryLockRange,
  unlockOutside,
} from "./overlap.ts";
import { BRIEF_USE, within } from "../waiting.ts";
import { sequenceOf } from "./release.ts";

/** A backing file. */
export interface BackingFile {
  readonly device: bigint;
  readonly inode: bigint;
}

/**
 * A backing file, with the identity of its binding before Linux 5.15, which has no disk
 * sequence numbers.
 */
export interface BoundFile extends BackingFile {
  /**
   * The result of {@linkcode bindingOf}, or `undefined` if there is no sysfs or there
   * is a disk sequence number.
   */
  readonly binding: bigint | undefined;
}

/** An open device to which this library attached a file. */
export class BoundLoop extends Loop {
  /** The disk sequence number of the binding; 0 before Linux 5.15. */
  diskSequence = 0;
  /** The file that is bound. */
  backing: BoundFile | undefined;
  /** `true` if `/dev` has no node: the device was opened through a temporary one. */
  readonly isWithoutNode: boolean;
  /**
   * The locked bytes. Their descriptor stays open until the device is closed, because
   * the lock of the bound open file description can be moved only through it.
   */
  #claim: Claim | undefined;
  /**
   * Settles when the backing file is closed, if another thread closes it, or after a
   * moment: a file server may never answer.
   */
  backingClosed: Promise<unknown> | undefined;

  constructor(node: OpenedNode) {
    super(node.minor, node);
    this.isWithoutNode = node.isTemporary;
  }

  /**
   * Records the identity of the binding, to recognize it after the descriptor is
   * closed.
   */
  remember({ device, inode }: BackingFile): void {
    this.diskSequence = sequenceOf(this) ?? 0;
    const binding = this.diskSequence === 0 ? bindingOf(this.minor) : undefined;
    this.backing = { device, inode, binding };
  }

  /** Takes ownership of the descriptor that holds the lock. */
  hold(claim: Claim): void {
    this.#claim = claim;
  }

  override close(): void {
    super.close();
    const claim = this.#claim;
    this.#claim = undefined;
    const closing = claim?.backing.closeInBackground();
    if (closing !== undefined) this.backingClosed = within(closing, BRIEF_USE);
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
      lockForChange(next, this);
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
    // Both ranges are locked until the change has succeeded or failed.
    if (!tryLockRange(next)) throw lockedError(next, this);
    try {
      super.setStatus(changes);
      this.#claim = next;
    } finally {
      unlockOutside(claim.backing.fd, this.#claim!);
    }
  }
}
