-- Pruning and purging have a least age, whoever calls: versions, tombstones, generations and watermarks have no such function at all.

-- Removes the oldest rows of one table beyond an age, so many at most, and tells how many. Rows that another replica is
-- removing are left to it.
create or replace function clerk_sync.prune(what text, older_than_s bigint, at_most integer) returns integer
  language plpgsql volatile security definer set search_path = '' as $$
declare
  before constant pg_catalog.timestamptz := pg_catalog.now() - older_than_s * interval '1 s';
  removed integer;
begin
  if older_than_s is null or older_than_s < 3600 then
    raise exception 'nothing younger than an hour is pruned' using errcode = '22023';
  end if;
  case what
  when 'receipts' then
    delete from clerk_sync.receipts
     where message_id = any (array(select r.message_id from clerk_sync.receipts r where r.received_at < before
                                    order by r.received_at limit at_most for update skip locked));
  when 'findings' then
    -- Ids grow with the time, so the oldest are the first, and the others are not looked at.
    delete from clerk_sync.findings
     where repaired_at < before
       and id = any (array(select f.id from clerk_sync.findings f order by f.id limit at_most for update skip locked));
  when 'passes' then
    -- After its findings. The last one of its scope says where the next goes on, the last complete one what it is held against.
    delete from clerk_sync.passes
     where id = any (array(
       select p.id from clerk_sync.passes p
        where p.ended_at < before and p.state <> 'running'
          and not exists (select from clerk_sync.findings f where f.pass_id = p.id)
          and exists (select from clerk_sync.passes l where l.scope = p.scope and l.id > p.id)
          and (p.state <> 'complete'
               or exists (select from clerk_sync.passes l where l.scope = p.scope and l.id > p.id and l.state = 'complete'))
        order by p.id limit at_most for update skip locked));
  when 'dead_letters' then
    delete from clerk_sync.dead_letters d
     using (select l.message_id, l.body_hash from clerk_sync.dead_letters l where l.received_at < before
             order by l.received_at limit at_most for update skip locked) old
     where (d.message_id, d.body_hash) = (old.message_id, old.body_hash);
  end case;
  get diagnostics removed = row_count;
  return removed;
end
$$;

revoke all on function clerk_sync.prune(text, bigint, integer) from public, anon, authenticated, service_role;
grant execute on function clerk_sync.prune(text, bigint, integer) to clerk_sync_worker;
