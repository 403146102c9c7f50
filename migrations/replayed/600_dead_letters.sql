-- Tries a dead letter again, in one statement: what its body says now is applied, and the letter is removed unless it is
-- refused again. Without a batch the body is about nothing that we mirror. No row: the letter is gone, or another try, which
-- the number of tries tells, came between.
--   A message that came with another body under its id is refused as ever ("reused"), unless a person asks for this very
-- letter: then the change counts without its message. Both bodies were signed, and the version decides.
create or replace function clerk_sync.retry_dead_letter(message_id text, body_hash text, tries integer, by_operator boolean, batch clerk_sync.batch_v1)
  returns table (n integer, outcome text, reason text)
  language plpgsql volatile security definer set search_path = '' as $$
#variable_conflict use_variable
declare
  result clerk_sync.outcome;
  pinned constant pg_catalog.text := (select i.instance_id from clerk_sync.instance i);
  message constant clerk_sync.message_v1 := batch.messages[1];
begin
  perform clerk_sync.lock_writer();
  perform from clerk_sync.dead_letters d where d.message_id = message_id and d.body_hash = body_hash and d.tries = tries for update;
  if not found then
    return;
  end if;
  if batch is not distinct from null then
    result := row(0, 'ignored', null);
  elsif batch.check_instance and message.instance_id <> coalesce(pinned, '') then
    -- Asked here too: an old message never pins the mirror, and one that counts without its message is not asked otherwise.
    result := row(0, 'foreign', pinned);
  else
    if by_operator and exists (select from clerk_sync.receipts r where r.message_id = message_id and r.body_hash <> body_hash) then
      batch.messages := '{}';
    end if;
    select a.n, a.outcome, a.reason into result from clerk_sync.apply(batch) a where a.n = 0;
  end if;
  if result.outcome in ('foreign', 'reused', 'ahead', 'dead_letter') then
    update clerk_sync.dead_letters d
       set tries = d.tries + 1, tried_at = pg_catalog.now(),
           reason = case result.outcome when 'foreign' then 'it is not of the mirror''s Clerk instance'
                                        when 'reused' then 'its message id was already used by an earlier webhook with a different body'
                                        when 'ahead' then 'its time is ahead of the database''s clock'
                                        else result.reason end
     where d.message_id = message_id and d.body_hash = body_hash;
  elsif result.outcome is not null then
    delete from clerk_sync.dead_letters d where d.message_id = message_id and d.body_hash = body_hash;
    update clerk_sync.receipts r
       set outcome = case result.outcome when 'duplicate' then 'stale' else result.outcome end, reason = result.reason,
           event_type = coalesce(message.event_type, r.event_type), entity_id = message.entity_id,
           field_errors = coalesce(message.field_errors, r.field_errors), event_at = pg_catalog.to_timestamp(message.event_at / 1000.0)
     where r.message_id = message_id and r.body_hash = body_hash and r.outcome = 'dead_letter';
  end if;
  return query select result.n, result.outcome, result.reason where result.outcome is not null;
end
$$;

-- Notes a try that did not come as far as the mirror. False: somebody else tried it meanwhile, or it is gone.
create or replace function clerk_sync.record_dead_letter_attempt(message_id text, body_hash text, tries integer, reason text) returns boolean
  language sql volatile security definer set search_path = '' as $$
  with noted as (
    update clerk_sync.dead_letters d set tries = d.tries + 1, tried_at = pg_catalog.now(), reason = $4
     where d.message_id = $1 and d.body_hash = $2 and d.tries = $3
    returning 1)
  select exists (select from noted)
$$;

-- Removes a dead letter that a person has done with.
create or replace function clerk_sync.drop_dead_letter(message_id text, body_hash text) returns boolean
  language sql volatile security definer set search_path = '' as $$
  with dropped as (
    delete from clerk_sync.dead_letters d where d.message_id = $1 and d.body_hash = $2 returning 1)
  select exists (select from dropped)
$$;

revoke all on function clerk_sync.retry_dead_letter(text, text, integer, boolean, clerk_sync.batch_v1) from public, anon, authenticated, service_role;
revoke all on function clerk_sync.record_dead_letter_attempt(text, text, integer, text) from public, anon, authenticated, service_role;
revoke all on function clerk_sync.drop_dead_letter(text, text) from public, anon, authenticated, service_role;
grant execute on function clerk_sync.retry_dead_letter(text, text, integer, boolean, clerk_sync.batch_v1) to clerk_sync_worker;
grant execute on function clerk_sync.record_dead_letter_attempt(text, text, integer, text) to clerk_sync_worker;
grant execute on function clerk_sync.drop_dead_letter(text, text) to clerk_sync_worker;
